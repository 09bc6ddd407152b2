"""Ray actors, each a thin shell round one engine: sampler, scorer, replay queue, learner rank, version store."""
