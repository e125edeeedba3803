"""Evaluate a model with lm-evaluation-harness."""
