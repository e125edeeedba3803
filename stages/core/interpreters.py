"""Pythons of engines: an engine is installed in an environment of its own, whose Python a variable names (its image
sets it).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

from stages.core.errors import ConfigError


def variable(engine: str) -> str:
    """The variable that names an engine's Python."""
    return f"MOXIN_{engine.replace('-', '_').upper()}_PYTHON"


def installed_packages() -> set[tuple[str, str]]:
    """Names and versions of all that this interpreter has installed, by the names of their metadata folders
    (`<name>-<version>.dist-info`): to read the metadata of 300 packages takes longer than many a stage.
    """
    folders = [Path(place) for place in sys.path if os.path.isdir(place)]
    stems = [path.stem for folder in folders for path in folder.glob("*-*.dist-info")]
    pairs = [stem.rpartition("-") for stem in stems]
    return {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, _, version in pairs}


def packages_digest() -> str:
    """Digest of what is installed: what really ran, whatever a lock says."""
    return hashlib.sha256(json.dumps(sorted(installed_packages())).encode()).hexdigest()


def interpreter(node: str, engine: str, instead: str) -> str:
    """Path of an engine's own Python, MOXIN_<ENGINE>_PYTHON. instead: what else `<node>.engine` may be set to, for the
    error.

    Raises ConfigError where the engine is not installed.
    """
    name = variable(engine)
    path = os.environ.get(name, "")
    if not os.access(path, os.X_OK):
        reason = f"{name} = '{path}' is not an executable file" if path else f"{name} is not set"
        raise ConfigError(
            f"{node}.engine = '{engine}' is not installed where this runs ({reason}): use the image of"
            f" containers/{engine}, or set {node}.engine {instead}"
        )
    return path
