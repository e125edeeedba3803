"""Environments of engines for tests that run the real thing: a virtual environment from a lock, with this interpreter's torch."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

LOCKS = Path(__file__).parent / "data"


def interpreter(folder: Path, name: str) -> Path:
    """Python of the environment that `tests/data/<name>.lock` names. MOXIN_TEST_<NAME>_PYTHON: one that is there already."""
    given = os.environ.get(f"MOXIN_TEST_{name.upper()}_PYTHON")
    if given:
        return Path(given)
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "-r", str(LOCKS / f"{name}.lock")], check=True)
    _borrow_torch(next(folder.glob("lib/python*/site-packages")))
    return python


def _borrow_torch(site: Path) -> None:
    """torch is a quarter of a gigabyte: it is linked, with its metadata, and nothing else of this interpreter's packages is seen."""
    files: Iterable[metadata.PackagePath] = metadata.distribution("torch").files or ()
    tops = {file.parts[0]: Path(str(file.locate())).parents[len(file.parts) - 2] for file in files if file.parts[0] != ".." and len(file.parts) > 1}
    for top, path in sorted(tops.items()):
        (site / top).symlink_to(path)


def wrapper(path: Path, python: Path, environment: dict[str, str], cases: dict[str, str]) -> Path:
    """A program in the place of `python` that sets variables; cases: shell patterns of a command line, and what is run instead."""
    lines = ["#!/bin/sh", *(f"export {name}='{value}'" for name, value in environment.items()), 'case "$*" in']
    lines += [f"{pattern}) exec {python} {words} ;;" for pattern, words in cases.items()]
    path.write_text("\n".join([*lines, f'*) exec {python} "$@" ;;', "esac", ""]))
    path.chmod(0o755)
    return path
