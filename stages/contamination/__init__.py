"""Contamination: which evaluation items the training data holds."""
