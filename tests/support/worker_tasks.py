"""Tasks for `test_workers`: in a module of their own, because every worker imports it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.artifacts import FileEntry
from stages.core.errors import ConfigError, InputError
from stages.core.reading import open_file
from stages.lib.data import process_pool
from stages.lib.data.task import Made, Receipt, finish


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


def refuse_while_others_store(folder: Path, number: int, log: str) -> int:
    """As `refuse`, in a worker that takes its time to store."""

    def slowly(made: Made) -> Receipt:
        time.sleep(0.5)
        return finish(made)

    process_pool.finish = slowly
    return refuse(folder, number, log)


def stumble(folder: Path, kind: str) -> None:
    """Fail in one way or another."""
    if kind == "memory":
        raise MemoryError("no room")
    if kind == "config":
        raise ConfigError("cannot work")
    raise KeyError("a key")


def rewrite(folder: Path, file: dict[str, Any]) -> int:
    """Copy a stored file of an earlier step into a folder of its own; its size."""
    with open_file(FileEntry.model_validate(file)) as stream:
        data = stream.read()
    (folder / "copy").mkdir()
    (folder / "copy" / "value").write_bytes(data)
    return len(data)


def table(folder: Path, rows: int, group: int, size: int) -> None:
    """A Parquet file, and one of so many bytes."""
    pq.write_table(pa.table({"text": ["a" * 100] * rows}), folder / "part-00000.parquet", row_group_size=group)
    (folder / "large").write_bytes(bytes(size))
