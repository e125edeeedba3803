"""A stage with checkpoints, for the tests."""
