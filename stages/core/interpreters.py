"""Pythons of engines: an engine is installed in an environment of its own, whose Python a variable names (its image sets it)."""

from __future__ import annotations

import os

from stages.core.contracts import ConfigError


def interpreter(node: str, engine: str, instead: str) -> str:
    """Path of an engine's own Python, MOXIN_<ENGINE>_PYTHON. instead: what else `<node>.engine` may be set to, for the error.

    Raises ConfigError where the engine is not installed.
    """
    name = f"MOXIN_{engine.replace('-', '_').upper()}_PYTHON"
    path = os.environ.get(name, "")
    if not os.access(path, os.X_OK):
        found = f"{name} = '{path}' is no program" if path else f"{name} is not set"
        raise ConfigError(
            f"{node}.engine = '{engine}' is not installed where this runs ({found}): use the image of containers/{engine}, "
            f"or set {node}.engine {instead}"
        )
    return path
