"""`moxin export`: an output of a node as a folder, which is whole or not there.

<parent>/.<name>.partial/  files/, what was fetched so far, and lock; the next call goes on from there
<parent>/<name>/           the artifact's files, and .moxin-artifact.json: which artifact, every file with its SHA-256
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stages.core.artifacts import FileEntry
from stages.core.disk import disk_full
from stages.core.errors import ConfigError, InputError
from stages.core.files import file_sha256, is_inside, write_atomically
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.store import Store, in_threads
from stages.lib.outside.prepared import PROVENANCE

SCHEMA = 1


@dataclass(frozen=True)
class Exported:
    """A folder that was written. kept: how many of its files an earlier call had fetched."""

    folder: Path
    port: str
    digest: str
    files: int
    bytes: int
    kept: int


def write(
    ledger: Ledger, result: StageResult, port: str, folder: Path, tell: Callable[[str], object] = lambda text: None
) -> Exported:
    """Write an output of a result to `folder`, every file with the SHA-256 that its manifest says. port: '' for the
    only one. tell: gets a line for people after each file.

    Raises ConfigError where there is no such port and where the place is taken, Damaged, InputError, InfraError.
    """
    port = _port(result, port)
    target = Path(os.path.abspath(folder))
    _refuse_taken(target)
    manifest = result.outputs[port]
    entries = ledger.entries(manifest)
    for entry in entries:
        if not is_inside(entry.path) or entry.path == PROVENANCE:
            raise InputError(f"{result.node}.{port}: its manifest lists {entry.path}, which no folder may hold")
    try:
        with _place(target) as partial:
            kept = _fetch(ledger.store, entries, partial, tell)
            write_atomically(partial / PROVENANCE, _provenance(result, port, entries))
    except OSError as error:
        raise disk_full(error, target.parent) or ConfigError(
            f"{target}: cannot be written ({error.strerror})"
        ) from error
    return Exported(target, port, manifest.digest, len(entries), sum(entry.size for entry in entries), kept)


def _port(result: StageResult, port: str) -> str:
    ports = list(result.outputs)
    if port in ports or (not port and len(ports) == 1):
        return port or ports[0]
    if not port:
        raise ConfigError(f"{result.node} has {len(ports)} outputs; choose one with --port: {', '.join(ports)}")
    close = difflib.get_close_matches(port, ports, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise ConfigError(f"{result.node} has no output '{port}'; {hint}there are: {', '.join(ports)}")


def _refuse_taken(target: Path) -> None:
    """Raises ConfigError unless nothing is there, or an empty folder."""
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir() or any(target.iterdir())):
        what = "is not empty" if target.is_dir() and not target.is_symlink() else "is no folder"
        raise ConfigError(f"{target} is there already and {what}: move it away, or choose another folder")


@contextmanager
def _place(target: Path) -> Generator[Path]:
    """A folder that becomes `target` at the end, with what an interrupted call left in it; when the block raises, it
    stays for the next call. One process at a time has it.
    """
    partial = target.with_name(f".{target.name}.partial")
    files = partial / "files"
    files.mkdir(parents=True, exist_ok=True)
    with open(partial / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{target}: another 'moxin export' is writing it; wait for it") from None
        _refuse_taken(target)  # by one that has finished meanwhile
        yield files
        os.rename(files, target)
        shutil.rmtree(partial, ignore_errors=True)


def _fetch(store: Store, entries: Sequence[FileEntry], folder: Path, tell: Callable[[str], object]) -> int:
    """Bring the files to their places; returns how many of them were there, with the right bytes."""
    _clear(folder, {entry.path for entry in entries})
    total, done = sum(entry.size for entry in entries), 0

    def fetch_one(entry: FileEntry) -> bool:
        path = folder / entry.path
        there = path.is_file() and path.stat().st_size == entry.size and file_sha256(path) == entry.sha256
        if not there:
            store.get_file(entry, path)
        nonlocal done
        done += entry.size  # two at once may lose one of the sums: it is for people
        tell(f"{done:,} of {total:,} bytes: {entry.path}")
        return there

    try:
        return sum(in_threads(fetch_one, entries, store.interrupted))
    finally:
        store.interrupted.clear()


def _clear(folder: Path, listed: set[str]) -> None:
    """Remove what is no file of this artifact: another one's, or half of a file that a killed process was fetching."""
    for root, _, names in os.walk(folder, topdown=False):
        here = Path(root)
        for path in (here / name for name in names):
            if path.is_symlink() or path.relative_to(folder).as_posix() not in listed:
                path.unlink()
        if here != folder and not any(here.iterdir()):
            here.rmdir()


def _provenance(result: StageResult, port: str, entries: Sequence[FileEntry]) -> str:
    manifest = result.outputs[port]
    value: Mapping[str, object] = {
        "schema_version": SCHEMA,
        "node": result.node,
        "stage": result.stage,
        "key": result.key,
        "port": port,
        "type": manifest.type,
        "digest": manifest.digest,
        "facets": manifest.facets,
        "meta": manifest.meta,
        "made": result.attempt.ended_at,
        "files": {entry.path: entry.sha256 for entry in entries},
    }
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
