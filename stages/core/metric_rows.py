"""The metric rows of an attempt as its checkpoints hold them: segments that never change, and the rows since.

A checkpoint costs by the rows that are new, not by all that a training of months has written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stages.core.artifacts import FileEntry

METRICS_FILE = ".metrics.jsonl"
"""The rows of a running attempt; in a checkpoint, those that are in no segment."""
SEGMENT = 1 << 20
"""Bytes of whole rows that make a segment, at least."""
_FOLDER = ".metrics/"


class Segment(NamedTuple):
    """Rows that are to be stored once. name: its path in checkpoints; number: among those of this attempt."""

    number: int
    name: str
    data: bytes


def is_rows(path: str) -> bool:
    """Whether a file of a checkpoint holds metric rows."""
    return path == METRICS_FILE or path.startswith(_FOLDER)


class MetricRows:
    """Reads the rows that the attempt writes, each once, and cuts them into segments."""

    def __init__(self, root: Path) -> None:
        self._file = root / METRICS_FILE
        self.forget()

    def forget(self) -> None:
        """Begin with no rows."""
        self.segments: list[FileEntry] = []
        self._read = 0
        self._later: list[bytes] = []
        self._rest = bytearray()
        self._file.write_bytes(b"")

    def restore(self, entries: Sequence[FileEntry], folder: Path) -> None:
        """Go on with the rows of a checkpoint, whose files of rows are in a folder. Raises FileNotFoundError."""
        parts = [(folder / entry.path).read_bytes() for entry in entries if entry.path != METRICS_FILE]
        rest = (folder / METRICS_FILE).read_bytes()
        self.forget()
        self._file.write_bytes(b"".join((*parts, rest)))
        self.segments = [entry for entry in entries if entry.path != METRICS_FILE]
        self._rest, self._read = bytearray(rest), self._file.stat().st_size

    def take(self, step: int) -> None:
        """Take over the rows of steps up to this one; the stage may have gone on meanwhile."""
        with open(self._file, "rb") as stream:
            stream.seek(self._read)
            new = stream.read()
        new = new[: new.rfind(b"\n") + 1]  # a row may be half written
        self._read += len(new)
        rows = [*self._later, *new.splitlines(keepends=True)]
        self._later = []
        for row in rows:
            if json.loads(row)["step"] <= step:
                self._rest += row
            else:
                self._later.append(row)

    def full_segment(self) -> Segment | None:
        """Rows enough for a segment, if there are."""
        if len(self._rest) < SEGMENT:
            return None
        end = self._rest.find(b"\n", SEGMENT - 1) + 1
        number = len(self.segments)
        return Segment(number, f"{_FOLDER}{number:06d}", bytes(self._rest[:end]))

    def stored(self, entry: FileEntry) -> None:
        """A segment, the one that `full_segment` gave, is in the store."""
        self.segments.append(entry)
        del self._rest[: entry.size]

    def rest(self) -> bytes:
        """The rows that are in no segment."""
        return bytes(self._rest)
