"""Frozen towers and the features that they see, computed once."""
