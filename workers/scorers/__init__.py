"""Preference scorers: PairRM, reward models and functions, behind one interface."""
