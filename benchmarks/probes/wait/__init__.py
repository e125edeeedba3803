"""A stage that takes a known time."""
