"""Environments of engines for tests that run the real thing: a virtual environment from a lock, with this interpreter's
torch.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.support.paths import DATA


def interpreter(folder: Path, name: str) -> Path:
    """Python of the environment that `tests/data/<name>.lock` names. MOXIN_TEST_<NAME>_PYTHON: one that is there
    already.
    """
    given = os.environ.get(f"MOXIN_TEST_{name.upper()}_PYTHON")
    if given:
        return Path(given)
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "-r", str(DATA / f"{name}.lock")], check=True)
    _borrow_torch(next(folder.glob("lib/python*/site-packages")))
    return python


def wheel(folder: Path, requirement: str) -> Path:
    """What a package's wheel holds, taken from the package index: upstream's own files, to be read or called."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "download", "--no-deps", requirement, "-d", str(folder)], check=True)
    with zipfile.ZipFile(next(folder.glob(f"{requirement.partition('==')[0]}-*.whl"))) as file:
        file.extractall(folder / "wheel")
    return folder / "wheel"


def definition(path: Path, name: str, **known: Any) -> Any:
    """A class or function of a source file by itself, made without the file's imports. known: the names that it
    needs.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = next(node for node in tree.body if getattr(node, "name", None) == name)
    namespace: dict[str, Any] = dict(known)
    exec(compile(ast.Module([found], []), str(path), "exec"), namespace)
    return namespace[name]


def _borrow_torch(site: Path) -> None:
    """torch is a quarter of a gigabyte: it is linked, with its metadata, and nothing else of this interpreter's
    packages is seen.
    """
    files: Iterable[metadata.PackagePath] = metadata.distribution("torch").files or ()
    tops = {
        file.parts[0]: Path(str(file.locate())).parents[len(file.parts) - 2]
        for file in files
        if file.parts[0] != ".." and len(file.parts) > 1
    }
    for top, path in sorted(tops.items()):
        (site / top).symlink_to(path)


def wrapper(path: Path, python: Path, environment: dict[str, str], cases: dict[str, str]) -> Path:
    """A program in the place of `python` that sets variables; cases: shell patterns of a command line, and what is run
    instead.
    """
    lines = ["#!/bin/sh", *(f"export {name}='{value}'" for name, value in environment.items()), 'case "$*" in']
    lines += [f"{pattern}) exec {python} {words} ;;" for pattern, words in cases.items()]
    path.write_text("\n".join([*lines, f'*) exec {python} "$@" ;;', "esac", ""]))
    path.chmod(0o755)
    return path
