"""Jobs: their specification, store, state machine and controller."""
