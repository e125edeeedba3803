"""What an error means: its exit class, and the one line that says it."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from stages.core.disk import nearly_full, no_space
from stages.core.errors import ExitClass, StageError

_FULL = re.compile(r"no space left|os error 28|errno 28\b|disk quota exceeded|database or disk is full", re.IGNORECASE)
"""How libraries that hide the system's error say that a disk is full: Rust's and Arrow's texts, SQLite's, torch's
CheckpointException.
"""
_WRITE_FAILED = re.compile(
    r"write failed|failed writing|unexpected pos \d+ vs|requested and \d+ written|short write", re.IGNORECASE
)
"""What torch's zip writer, NumPy's `tofile` and zstd say when a write came short. On a full disk that is the reason."""
_AWAY = (errno.EIO, errno.ESTALE, errno.EREMOTEIO)
"""What the system says where a disk fails, or the server of a shared folder (NFS, Lustre) is away: another try goes
on, perhaps on another machine.
"""
_AWAY_OF_A_FILE = (errno.ENOTCONN, errno.ENODEV, errno.ETIMEDOUT)
"""The same of FUSE and soft mounts; without a file's name they are a socket's."""
MESSAGE = 4000
"""Characters of the line that says how an attempt ended."""


def classify(error: BaseException, root: Path) -> tuple[ExitClass, str]:
    """The exit class of an error and the one line that says it. root: the folder that the stage writes to.

    What an error quotes may be long, have lines of its own, or be no text that can be written: it is data of others.
    """
    exit_class, message = _classified(error, root)
    line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()
    return exit_class, line if len(line) <= MESSAGE else f"{line[: MESSAGE - 2]} …"


def _classified(error: BaseException, root: Path) -> tuple[ExitClass, str]:
    if isinstance(error, StageError):
        return error.exit_class, str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ExitClass.OOM, f"out of memory: {error}" if str(error) else "out of memory"
    if (full := _full_disk(error, root)) is not None:
        return ExitClass.INFRA, str(no_space(full))
    if (away := _disk_away(error)) is not None:
        return ExitClass.INFRA, f"the disk that holds {away.filename or root} does not answer: {away.strerror or away}"
    frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    at = f" ({Path(frame.filename).name}:{frame.lineno})" if frame else ""
    return ExitClass.BUG, f"{type(error).__name__}: {error}{at}"


@contextmanager
def disk_told(root: Path) -> Generator[None]:
    """Say that the disk is full while it is: once the attempt's folder is removed, some of these errors are of no known
    cause.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, StageError) and (full := _full_disk(error, root)) is not None:
            raise no_space(full) from error
        raise


def _full_disk(error: BaseException, root: Path) -> Path | str | None:
    """The file or folder whose disk is full, where that is what lies behind an error."""
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return cause.filename or root
    if any(_FULL.search(str(cause)) for cause in chain if not isinstance(cause, StageError)):
        return root
    if any(_WRITE_FAILED.search(str(cause)) for cause in chain) and nearly_full(root):
        return root
    return None


def _disk_away(error: BaseException) -> OSError | None:
    """The error of a disk that does not answer, where that is what an error is, or is raised from."""
    link: BaseException | None = error
    for _ in range(20):
        if isinstance(link, OSError) and (link.errno in _AWAY or (link.filename and link.errno in _AWAY_OF_A_FILE)):
            return link
        link = link.__cause__ if link else None
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, what was being handled, and what it gathers (groups; torch's CheckpointException has
    `failures`).
    """
    seen: set[int] = set()
    queue: list[BaseException] = [error]
    while queue:
        link = queue.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        queue.extend(cause for cause in (link.__cause__, link.__context__) if cause is not None)
        failures = getattr(link, "failures", None)
        if isinstance(link, BaseExceptionGroup):
            queue.extend(cast("BaseExceptionGroup[BaseException]", link).exceptions)
        if isinstance(failures, dict):
            queue.extend(
                row[0]
                for row in cast("dict[Any, Any]", failures).values()
                if isinstance(row, tuple) and row and isinstance(row[0], BaseException)
            )
