"""What is learned: records, objectives, adapters, likelihoods, batch planning, and the trainer.

Plain torch and peft. Nothing here knows ray, vllm or fastapi, so that the learner can be read, tested and benchmarked alone.
"""
