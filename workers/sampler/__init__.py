"""The sampler: one vLLM engine that writes answers under named policy versions. Sole owner of vLLM's interfaces (rule 17)."""
