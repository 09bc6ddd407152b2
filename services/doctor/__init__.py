"""Checks of a machine or a cluster, before a job finds out: what is wrong, and what to do about it."""
