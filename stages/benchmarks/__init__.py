"""Evaluation data sets of any task, mirrored once."""
