"""A stage of no work, with any number of parents, that fails when it is told to."""
