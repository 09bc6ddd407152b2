"""The replay queue: what the learner has yet to learn from, durable and bounded."""
