"""What others made, brought from where it lies and checked: it becomes an artifact as if a stage had made it."""
