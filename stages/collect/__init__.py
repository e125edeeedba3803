"""Gather the raw sources: name them, or make them from what the machine has."""
