"""Real prose, web pages and code that every Python machine has: its library, its packages, their documentation.

Paths never leave this module: documents are addressed as `python:<module>` or `pypi:<package>/<module>`. In a container
MOXIN_MATERIAL names a folder where the launching machine's `stdlib` and `packages` are mounted: the same material, so
the same bytes.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import cast

MIN_DOCSTRING = 400
"""Characters: shorter docstrings are signatures in words, not prose."""
BUILD_RECORD = "_sysconfigdata"
"""The module in which CPython keeps its build's settings: full of this machine's paths, so never material."""
_DOCSTRING = re.compile(r'^[ \t]*[rR]?"""(.*?)"""', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Text:
    """A piece of prose with its address and licence."""

    url: str
    text: str
    license: str


@dataclass(frozen=True)
class Module:
    """A source file with its address."""

    url: str
    path: Path
    license: str


def _library() -> Path:
    """The folder of the standard library."""
    mounted = os.environ.get("MOXIN_MATERIAL")
    return Path(mounted, "stdlib") if mounted else Path(sysconfig.get_paths()["stdlib"])


def _topics() -> dict[str, str]:
    """The language reference's topics. Read, not imported: they must be those of the library that is gathered."""
    tree = ast.parse((_library() / "pydoc_data" / "topics.py").read_text(encoding="utf-8"))
    return next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))


def library_modules() -> list[Module]:
    """The standard library's source files, without tests and vendored wheels, in address order."""
    root = _library()
    skip = {"test", "tests", "idle_test", "site-packages", "__pycache__", "ensurepip", "lib2to3", "pydoc_data"}
    modules = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skip]
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            if not path.name.startswith(BUILD_RECORD):
                modules.append(Module(f"python:{_dotted(path.relative_to(root))}", path, "PSF-2.0"))
    return sorted(modules, key=lambda m: m.url)


def package_modules(name: str, dist: Distribution) -> list[Module]:
    """A distribution's own Python files, without tests, in address order. Reads RECORD: quicker than `dist.files`."""
    license = _license(dist)
    root = Path(str(dist.locate_file("")))
    modules = []
    for row in (dist.read_text("RECORD") or "").splitlines():
        file = row.partition(",")[0]
        if file.endswith(".py") and not {"tests", "test", "testing", ".."} & set(file.split("/")):
            modules.append(Module(f"pypi:{name}/{_dotted(Path(file))}", root / file, license))
    return sorted(modules, key=lambda m: m.url)


def packages() -> dict[str, Distribution]:
    """The installed distributions by name, in name order."""
    mounted = os.environ.get("MOXIN_MATERIAL")
    # The environment's own folder, never sys.path: what a PYTHONPATH adds to one process is not this machine's.
    folder = str(Path(mounted, "packages")) if mounted else sysconfig.get_paths()["purelib"]
    installed = {d.name.lower(): d for d in distributions(path=[folder]) if d.name}
    installed.pop("moxin", None)
    return {name: installed[name] for name in sorted(installed)}


def split(name: str) -> str:
    """Whether a package's documentation is taken as prose or as web pages: each is in one of them only."""
    return "text" if hashlib.sha256(name.lower().encode()).digest()[0] % 2 else "web"


def docstrings(module: Module, shortest: int = MIN_DOCSTRING) -> Iterator[Text]:
    """The long docstrings of a source file, cleaned of indentation, by position: `<module>#<number>`.

    Found by their quotes alone: parsing thousands of files would cost twenty times as much.
    """
    try:
        source = module.path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return
    for number, match in enumerate(_DOCSTRING.finditer(source)):
        doc = inspect.cleandoc(match.group(1))
        if len(doc) >= shortest:
            yield Text(f"{module.url}#{number}", doc, module.license)


def prose(limit: int, seed: int) -> Iterator[Text]:
    """Prose up to `limit` bytes: the language reference's topics, then docstrings in a seeded order."""
    topics = _topics()
    used = 0
    for name in sorted(topics):
        text = topics[name].strip()
        used += len(text.encode())
        yield Text(f"python:topics/{name}", text, "PSF-2.0")
    modules = library_modules() + [
        m for n, d in packages().items() if split(n) == "text" for m in package_modules(n, d)
    ]
    random.Random(seed).shuffle(modules)
    for module in modules:
        for text in docstrings(module):
            if used >= limit:
                return
            used += len(text.text.encode())
            yield text


def sources(limit: int, seed: int) -> Iterator[Module]:
    """Source files of the standard library up to `limit` bytes, in a seeded order."""
    modules = [m for m in library_modules() if 200 < m.path.stat().st_size < 200_000]
    random.Random(seed).shuffle(modules)
    used = 0
    for module in modules:
        if used >= limit:
            return
        used += module.path.stat().st_size
        yield module


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _license(dist: Distribution) -> str:
    """The SPDX expression that a distribution states, or '' (free text is no licence identifier)."""
    return cast(Message, dist.metadata).get("License-Expression", "") or ""


def python_version() -> str:
    """Major and minor version: what decides the material."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
