"""The demo world: a help desk small enough for two cores."""
