"""What runs in an engine's own interpreter, as scripts: the standard library and the engine alone, nothing of this repository."""
