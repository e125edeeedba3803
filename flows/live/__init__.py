"""Curves while they grow: beside those of before, with what in them is not right."""
