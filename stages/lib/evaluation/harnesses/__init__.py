"""Other harnesses, each in an environment of its own: their command lines from a suite, and their real result files."""
