"""Identity: the key of an attempt, the digest of an artifact, the digest of a stage's source.

A key names *what* would be computed: schema, stage, author revision, identity configuration, content of each input.
Code is recorded beside the result (`source_digest`) but is no part of the key: see docs/design.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.core.artifacts import FileEntry
from stages.core.files import ROOT
from stages.core.messages import SCHEMA

_NAMED = re.compile(rb"""(["'])(stages(?:\.[a-z0-9_]+)+)(?::\w+)?\1""")
"""A string that is nothing but the name of a module of ours, or `module:function`: `python -m` and importlib get such.
"""
_IMPORTED = re.compile(
    rb"\bfrom\s+(stages[\w.]*)\s+import\s+\(?((?<=\()(?:#[^\n]*|[^)#])*|(?:\\\n|[^\n;#])+)"
    rb"|\bimport\s+((?:\\\n|[^\n;(#])*\bstages\b(?:\\\n|[^\n;#])*)"
)
"""`from a module of ours import names`, in brackets or not; `import names`, one of them ours."""
_COMMENT, _NAME = re.compile(rb"#[^\n]*|\\\n"), re.compile(rb"[\w.]+")


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8, no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def stage_key(stage: str, revision: int, identity: Mapping[str, Any], inputs: Mapping[str, Sequence[str]]) -> str:
    """The key of an attempt. inputs: `{port: [content digest, ...]}` in wiring order; empty ports are left out."""
    return sha256(
        canonical_json(
            {
                "schema": SCHEMA,
                "stage": stage,
                "revision": revision,
                "config": identity,
                "inputs": {port: list(digests) for port, digests in inputs.items() if digests},
            }
        )
    )


def artifact_digest(
    type: str, facets: Mapping[str, str | int], files: Iterable[FileEntry] = (), index: str | None = None
) -> str:
    """The content digest of an artifact: its type, its facets, and each file's path, size and SHA-256; those of many
    files by the digest of their index.
    """
    if index is not None:
        return sha256(canonical_json({"type": type, "facets": dict(facets), "index": index}))
    rows = sorted([f.path, f.size, f.sha256] for f in files)
    return sha256(canonical_json({"type": type, "facets": dict(facets), "files": rows}))


def source_files(stage: str) -> list[Path]:
    """The Python sources that a stage runs: its package and the `stages.*` modules it imports or starts, transitively,
    in path order.

    `stages.core` is left out: it moves bytes, it does not decide them, and the git commit records it.
    """
    seen: set[Path] = set()
    queue = sorted((ROOT / "stages" / stage).rglob("*.py"))
    while queue:
        path = queue.pop()
        if path not in seen:
            seen.add(path)
            queue.extend(_imported(path.read_bytes(), ROOT))
    return sorted(seen)


@lru_cache(maxsize=256)
def source_digest(stage: str) -> str:
    """Digest of `source_files`."""
    return sha256(
        canonical_json([[p.relative_to(ROOT).as_posix(), sha256(p.read_bytes())] for p in source_files(stage)])
    )


@lru_cache(maxsize=1024)
def _imported(source: bytes, root: Path) -> frozenset[Path]:
    """Files of the `stages.*` modules that a source imports, anywhere in it. Cached: stages share most of theirs."""
    files: set[Path] = set()
    for name in imported_modules(source):
        if name.startswith("stages.") and not name.startswith("stages.core"):
            files |= _packages(name, root)
            files.update(_there(os.path.join(root, *name.split(".")) + ".py"))
    return frozenset(files)


@lru_cache(maxsize=4096)
def _packages(name: str, root: Path) -> frozenset[Path]:
    """The `__init__.py` of a package and of those that it lies in, `stages` left out, as far as there are any."""
    above, _, _ = name.rpartition(".")
    if not above:
        return frozenset()
    return _packages(above, root).union(_there(os.path.join(root, *name.split("."), "__init__.py")))


def _there(path: str) -> list[Path]:
    """A file, where there is one: by its name alone, since most are not there, and making a Path takes longer."""
    return [Path(path)] if os.path.isfile(path) else []


def imported_modules(source: bytes) -> frozenset[str]:
    """Dotted names of our modules, or of what is in them, that a source imports anywhere, or names in a string of their
    own: those are started. An import that stands in a text counts too: a digest may look at too many files, never at
    too few. Not by `ast`, which takes twenty times as long.
    """
    names = {name.decode() for _, name in _NAMED.findall(source)}
    for module, members, plain in _IMPORTED.findall(source):
        listed = [_NAME.match(part.strip()) for part in _COMMENT.sub(b"", members or plain).split(b",")]
        before = [module.decode()] if module else []
        names.update(".".join([*before, name.group().decode()]) for name in listed if name)
        names.update(before)
    return frozenset(name for name in names if name.partition(".")[0] == "stages")
