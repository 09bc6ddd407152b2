"""Two sides on the same prompts, judged: what `sparring evaluate` does."""
