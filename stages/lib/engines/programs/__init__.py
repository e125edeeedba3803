"""What runs in an engine's own interpreter, as scripts or loaded by path."""
