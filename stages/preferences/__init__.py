"""Preference data: data sets of the hub mixed and normalised, or right and wrong answers about this run's documents."""
