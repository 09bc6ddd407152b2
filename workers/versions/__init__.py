"""The version store: published policy versions, and the cache through which workers read them."""
