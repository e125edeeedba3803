"""Evaluate a model with another harness, which is installed in an environment of its own."""
