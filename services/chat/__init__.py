"""Chat with a job's policy, and comparisons of its versions."""
