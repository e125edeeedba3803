"""What can be known to be missing before anything runs: files, digests, commits, tokens. Light: reads no file of more
than 64 MiB.

A stage's `preflight` gives `Problem`s; `moxin plan` shows them, and a run does not start while there are any.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.core.files import file_sha256

QUICK_BYTES = 64 << 20
"""Files up to this size are hashed when planning, in a tenth of a second; larger ones by `moxin check --sources`, and
by the stage.
"""
COMMIT = re.compile(r"[0-9a-f]{40}")
GATED = frozenset(
    {
        "BAAI/Infinity-Instruct",
        "Idavidrein/gpqa",
        "bigcode/the-stack",
        "bigcode/the-stack-dedup",
        "bigcode/the-stack-smol",
    }
)
"""Data sets of the hub whose terms must be accepted first (their pages)."""


@dataclass(frozen=True)
class Problem:
    """Something that will stop a node, known before it runs: a setting, its value, what is wrong, and the one thing to
    do.
    """

    key: str
    value: str | None
    fault: str
    remedy: str

    def line(self, node: str) -> str:
        """One line for people. A key in capitals is a variable of the environment, not the node's."""
        name = self.key if self.key.isupper() else f"{node}.{self.key}"
        return f"{name}{'' if self.value is None else f' = {self.value}'}: {self.fault}: {self.remedy}"


@dataclass(frozen=True)
class Probe:
    """A source that `moxin check --sources` opens one row of: `python -m <module>` gets the requests of many, JSON
    values.
    """

    key: str
    what: str
    module: str
    request: Mapping[str, Any]


@dataclass(frozen=True)
class PreflightContext:
    """How closely to look for problems. here: an attempt sees this machine's files; deep: large files may be read;
    configs: of all nodes, by name.
    """

    here: bool = True
    deep: bool = False
    configs: Mapping[str, Any] = field(default_factory=dict[str, Any])


def model_file(
    key: str,
    path: str | None,
    digest: str | None,
    what: str,
    context: PreflightContext,
    inside: Sequence[str] = ("model.safetensors",),
) -> Iterator[Problem]:
    """A file that decides the result: named by `key`, its content by `<key without 'path'>sha256`.

    what: for the remedy; inside: of a folder, the file that counts, the first that is there.
    """
    digest_key = f"{key.removesuffix('path')}sha256" if key.endswith("path") else f"{key}_sha256"
    if not path:
        yield Problem(key, None, "unset", f"name {what}, and its digest in {digest_key}")
        return
    actual = None
    if context.here:
        if not os.path.exists(path):
            yield Problem(key, path, "no such file", f"fetch {what}, or correct the path")
            return
        file = next((file for file in (Path(path) / name for name in inside) if file.is_file()), Path(path))
        actual, path = quick_digest(file, context), str(file)
    if digest is None:
        yield Problem(
            digest_key,
            None,
            "unset: what the file holds would not be part of the key",
            f"set it to {actual or f'the output of: sha256sum {path}'}",
        )
    elif actual and actual != digest:
        yield Problem(
            key,
            path,
            f"its SHA-256 is {actual}, {digest_key} declares {digest}",
            "fetch the file again, or correct the digest",
        )


def quick_digest(path: Path, context: PreflightContext) -> str | None:
    """The SHA-256 of a file, where reading it is quick or wanted; None of a folder, a large file, or one that cannot be
    read.
    """
    try:
        size = path.stat()
        if not path.is_file() or (size.st_size > QUICK_BYTES and not context.deep):
            return None
        return _digest(str(path), size.st_size, size.st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=64)
def _digest(path: str, size: int, changed: int) -> str:
    return file_sha256(Path(path))


def require_digest(where: str, path: Path, digest: str | None) -> None:
    """Raise InputError when a file is not the one that is declared. where: name of the setting with the path."""
    if digest is None:
        return
    actual = file_sha256(path)
    if actual != digest:
        raise InputError(
            f"{where} = {path}: its SHA-256 is {actual}, not {digest}: fetch the file again, or correct the digest"
        )


def present(key: str, path: str | None, what: str, context: PreflightContext) -> Iterator[Problem]:
    """A file or folder that must be there; its content is not checked."""
    if not path:
        yield Problem(key, None, "unset", f"name {what}")
    elif context.here and not os.path.exists(path):
        yield Problem(key, path, "no such file or folder", f"fetch {what}, or correct the path")


def data_set(
    key: str, name: str, revision: str | None, mirror: str | None, context: PreflightContext
) -> Iterator[Problem]:
    """A data set of the hub: in the mirror, or pinned to a commit, and with a token where it is gated. key: of its
    revision.
    """
    if mirror is not None:
        if context.here and not (Path(mirror) / name).is_dir():
            yield Problem("mirror", mirror, f"has no folder {name}", "mirror the data set, or unset mirror")
        return
    if not COMMIT.fullmatch(revision or ""):
        yield Problem(
            key,
            revision or None,
            f"{name} is not pinned: it may change under the same key",
            "set it to a commit of its page, 40 hexadecimal digits",
        )
    if name in GATED and context.here and not token():
        yield Problem(
            "HF_TOKEN",
            None,
            f"{name} is gated, and there is no token",
            f"accept the terms on the page of {name}, then set HF_TOKEN or run 'hf auth login'",
        )


def token() -> bool:
    """Whether there is a token of the hub, where huggingface_hub looks for it."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return bool(os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")) or file.is_file()
