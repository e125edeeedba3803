"""A release as a folder: written beside its place and moved there whole; one that somebody else made, or changed, is
never replaced.

    <out>/<name>/  model-00001-of-00004.safetensors .. config.json, tokenizer, README.md (the card), LICENSE,
                   THIRD_PARTY_NOTICES.md, mof.yml, provenance.intoto.json, release.json (every file with its SHA-256,
                   and what they are of), model.sig
    <out>/data/<node>/  README.md, a card for every corpus, and croissant.json
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.release import signing, weights
from flows.release.lineage import Lineage
from stages.core.disk import disk_full
from stages.core.errors import ConfigError, InputError
from stages.core.files import file_sha256, is_inside
from stages.core.store import Store

MANIFEST = "release.json"
SCHEMA = 1
AFTERWARDS = frozenset({MANIFEST, signing.SIGNATURE})
"""What is written after release.json was: it lists neither itself nor a signature over it."""
CARD = "README.md"
_PARTIAL, _OLD = ".partial", ".replaced"


@dataclass(frozen=True)
class Released:
    """A folder that was written. files: SHA-256 by path."""

    name: str
    path: Path
    node: str
    digest: str
    weights: weights.Weights
    files: Mapping[str, str]
    size: int


def write(
    out: Path,
    lineage: Lineage,
    store: Store,
    describe: Callable[[Path, weights.Weights], Mapping[str, str]],
    prove: Callable[[Path], object] | None = None,
    finish: Callable[[Path], object] | None = None,
    max_shard_bytes: int = weights.MAX_SHARD_BYTES,
) -> Released:
    """Write `<out>/<name>`. describe: gets the folder with the weights in it, gives the texts of further files by
    name, the card among them; prove: writes papers about all of these, before release.json is there; finish: what adds
    signatures, after it is.

    Raises ConfigError where the place is taken by what this did not write; InputError, InfraError, Damaged.
    """
    target = out / lineage.name
    refuse_foreign(target)
    try:
        with _place(out, target) as folder:
            laid = _fill(folder, lineage, store, max_shard_bytes)
            for file, text in describe(folder, laid).items():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(text, encoding="utf-8")
            if prove is not None:
                prove(folder)
            files = _digests(folder)
            _write_manifest(folder, lineage, laid, files)
            if finish is not None:
                finish(folder)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise disk_full(error, out) or ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error
    return Released(lineage.name, target, lineage.model.node, lineage.artifact.digest, laid, files, size)


def refuse_foreign(target: Path) -> None:
    """Raises ConfigError unless the place is free, or holds a release of ours as it was written."""
    if not os.path.lexists(target):
        return
    where = f"{target} is there already"
    hint = "move it away, or choose another --out"
    if target.is_symlink() or not target.is_dir():
        raise ConfigError(f"{where} and is no folder: {hint}")
    if not any(target.iterdir()):
        return
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        listed = {str(path): str(sha) for path, sha in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{where}, and 'moxin release' did not write it (no {MANIFEST}): {hint}") from None
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if strange := sorted(present - listed.keys() - AFTERWARDS):
        raise ConfigError(f"{where} and holds {strange[0]}, which 'moxin release' did not write: {hint}")
    for path, sha in listed.items():  # the texts alone: weights take minutes to read, and nobody edits them by hand
        if not path.endswith(weights.SUFFIX) and path in present and file_sha256(target / path) != sha:
            raise ConfigError(f"{where} and its {path} was changed by hand: {hint}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """release.json of a folder. Raises ConfigError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} is no release: its {MANIFEST} cannot be read ({error})") from error
    return manifest


def _fill(folder: Path, lineage: Lineage, store: Store, max_shard_bytes: int) -> weights.Weights:
    """The model's own files: weights in shards as the hub has them, all else as it is but for the stage's card."""
    fetched = folder / ".fetched"
    sources: list[Path] = []
    for entry in lineage.artifact.files:
        if not is_inside(entry.path):
            raise InputError(f"{lineage.model.node}: its manifest lists {entry.path}, which is no path inside a folder")
        if "/" not in entry.path and entry.path.endswith(weights.SUFFIX):
            sources.append(fetched / entry.path)
            store.get_file(entry, sources[-1])
        elif entry.path not in (CARD, weights.INDEX):
            store.get_file(entry, folder / entry.path)
    laid = weights.lay_out(sources, folder, max_shard_bytes)
    shutil.rmtree(fetched)
    return laid


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}


def _write_manifest(folder: Path, lineage: Lineage, laid: weights.Weights, files: Mapping[str, str]) -> None:
    value = {
        "schema_version": SCHEMA,
        "name": lineage.name,
        "profile": lineage.profile,
        "node": lineage.model.node,
        "key": lineage.result.key,
        "digest": lineage.artifact.digest,
        "split_anew": laid.split_anew,
        "files": dict(files),
    }
    (folder / MANIFEST).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _place(out: Path, target: Path) -> Generator[Path]:
    """A new folder that takes the place of `target` at the end; when the block raises, all stays as it was.

    One process at a time writes below `out`; what killed ones left there is removed.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--out {out}: another 'moxin release' is writing there; wait for it") from None
        _recover(out, target)
        partial = out / f".{target.name}.{uuid.uuid4().hex}{_PARTIAL}"
        partial.mkdir()
        try:
            yield partial
            old = out / f".{target.name}{_OLD}"
            if target.exists():
                os.rename(target, old)
            try:
                os.rename(partial, target)
            except BaseException:
                if old.exists():
                    os.rename(old, target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _recover(out: Path, target: Path) -> None:
    """What a killed process left: a release that it had put aside comes back, or goes where its successor is there."""
    old = out / f".{target.name}{_OLD}"
    if old.exists() and not target.exists():
        os.rename(old, target)
    shutil.rmtree(old, ignore_errors=True)
    for left in out.glob(f".{target.name}.*{_PARTIAL}"):
        with contextlib.suppress(OSError):
            shutil.rmtree(left)
