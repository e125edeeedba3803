"""Tasks for `test_workers`: in a module of their own, because every worker imports it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from stages.core.errors import ConfigError, InputError


def square(folder: Path, number: int, log: str) -> int:
    """Write and return the square; note in the log that it ran."""
    with open(Path(log) / f"{number}", "a") as stream:
        stream.write("x")
    (folder / "value").write_text(str(number * number))
    return number * number


def die_once(folder: Path, number: int, log: str) -> int:
    """As `square`, but number 2 is killed the first time."""
    marker = Path(log) / "died"
    if number == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(folder, number, log)


def always_die(folder: Path, number: int, log: str) -> None:
    """Killed every time."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(folder: Path, number: int, log: str) -> int:
    """An expected failure of one task."""
    if number == 3:
        raise InputError("shard 3 cannot be used")
    return square(folder, number, log)


def stumble(folder: Path, kind: str) -> None:
    """Fail in one way or another."""
    if kind == "memory":
        raise MemoryError("no room")
    if kind == "config":
        raise ConfigError("cannot work")
    raise KeyError("a key")
