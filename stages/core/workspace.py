"""Folders of attempts on this machine: made, removed at the end, swept up when their process was killed; outputs that
could not be published are kept for the next attempt.

A live process holds a lock on `.owner` in its folder; the system takes it back when the process ends, however it ends.
So a folder whose lock can be had belongs to nobody, also when process numbers come again, or another container made it.
One without that mark is being made or removed, unless nothing changes in it: then whoever did was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stages.core.messages import StageRequest

OWNER = ".owner"
KEPT = "kept-"
STATE = "state.json"
UNCLAIMED = 60.0
"""Seconds without a change after which a folder without its owner's mark is nobody's: making one takes milliseconds."""


def scratch() -> Path:
    """Where attempts have their folders. A stage writes here alone: a write that fails without a name failed here."""
    return Path(os.environ.get("MOXIN_SCRATCH") or tempfile.gettempdir())


@contextmanager
def workspace() -> Generator[Path]:
    """A folder for this attempt alone, removed whatever happens."""
    base = scratch()
    base.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="stage-", dir=base))
    with claim(root):
        try:
            yield root
        finally:
            shutil.rmtree(root, ignore_errors=True)


@contextmanager
def shared_folder(name: str) -> Generator[Path]:
    """A folder of all processes of an attempt on this machine, removed by the last of them. On a file system without
    locks each has its own.
    """
    root = scratch() / f"stage-{name}"
    while True:
        root.mkdir(parents=True, exist_ok=True)
        try:
            owner = open(root / OWNER, "a")  # noqa: SIM115 - closed below
        except FileNotFoundError:  # removed just now
            continue
        with owner:
            try:
                fcntl.flock(owner, fcntl.LOCK_SH)
            except OSError:
                with tempfile.TemporaryDirectory(dir=scratch(), ignore_cleanup_errors=True) as alone:
                    yield Path(alone)
                return
            if _is_that_of(root / OWNER, owner):  # else the last one before us removed it just now
                try:
                    yield root
                finally:
                    with contextlib.suppress(OSError):
                        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(root, ignore_errors=True)
                return


def _is_that_of(path: Path, opened: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except FileNotFoundError:
        return False


def claim(root: Path) -> IO[str]:
    """Mark a folder as this process's, for as long as the answer is open."""
    unseen = root / f"{OWNER}.new"
    owner = open(unseen, "w")  # noqa: SIM115 - the caller closes it
    with contextlib.suppress(OSError):
        fcntl.flock(owner, fcntl.LOCK_EX)
    os.replace(unseen, root / OWNER)  # locked before a sweep can see it
    return owner


def attempt_folders(base: Path) -> list[Path]:
    """The folders of attempts in a scratch folder, in use or not; those too in which outputs were about to be kept."""
    return [folder for name in ("stage-*", "secrets-*", f".{KEPT}*") for folder in base.glob(name)]


@contextmanager
def unused(root: Path) -> Generator[bool]:
    """Whether an attempt's folder belongs to nobody, who is then its owner within. False on a file system without
    locks, and where the folder is gone.
    """
    with contextlib.ExitStack() as stack:
        try:
            owner = stack.enter_context(open(root / OWNER))
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except FileNotFoundError:
            free = _unclaimed(root)
        except OSError:
            free = False
        yield free


def _unclaimed(root: Path) -> bool:
    try:
        return time.time() - root.stat().st_mtime > UNCLAIMED
    except OSError:
        return False


def sweep(base: Path, folders: Iterable[Path] | None = None) -> tuple[int, int]:
    """Remove the folders of attempts whose processes are gone; how many, and their bytes. What is in use is never
    touched. folders: of these alone; None: all.
    """
    count = freed = 0
    for root in attempt_folders(base) if folders is None else folders:
        with contextlib.suppress(OSError), unused(root) as free:  # OSError: it goes meanwhile
            if free:
                freed += sum(p.lstat().st_size for p in root.rglob("*") if p.is_file() and p.lstat().st_nlink == 1)
                shutil.rmtree(root, ignore_errors=True)
                count += 1
    return count, freed


# --- outputs that could not be published ------------------------------------------------------------------------------


def kept_folder(key: str) -> Path:
    """Where outputs of a key are kept until an attempt publishes them."""
    return scratch() / f"{KEPT}{key}"


def keep(request: StageRequest, root: Path, state: dict[str, Any]) -> Path | None:
    """Keep an attempt's outputs, `out` under its folder, with what its publication needs; where they are then, None
    when they cannot be kept.
    """
    try:
        record = {
            "source_digest": request.code.source_digest,
            "epoch": request.lease.epoch,
            "replaces": request.replaces,
            "files": _listing(root),
            **state,
        }
        partial = Path(tempfile.mkdtemp(prefix=f".{KEPT}", dir=scratch()))
        os.rename(root / "out", partial / "out")
        (partial / STATE).write_text(json.dumps(record), encoding="utf-8")
        shutil.rmtree(kept_folder(request.key), ignore_errors=True)
        os.rename(partial, kept_folder(request.key))
    except OSError:
        return None
    return kept_folder(request.key)


def take_kept(request: StageRequest, root: Path) -> dict[str, Any] | None:
    """Take what an earlier attempt kept for this key, made by the same code to replace the same result, and whole, into
    `root`; None when there is none: a forced run makes anew what was kept before it.

    Only what this user left: scratch may be a folder that all share.
    """
    folder = kept_folder(request.key)
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            return None
        record = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if record.pop("files") != _listing(folder) or record.pop("source_digest") != request.code.source_digest:
            return None
        if record.pop("replaces", None) != request.replaces:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    os.rename(folder / "out", root / "out")
    shutil.rmtree(folder, ignore_errors=True)
    return record


def _listing(root: Path) -> dict[str, list[int]]:
    """Size and time of every output file. Not digests: who stops an attempt does not wait until terabytes are read once
    more.
    """
    paths = (p for p in sorted((root / "out").rglob("*")) if p.is_file())
    return {p.relative_to(root).as_posix(): [p.stat().st_size, p.stat().st_mtime_ns] for p in paths}
