"""The command line: ``sparring``."""
