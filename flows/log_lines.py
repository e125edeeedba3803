"""Output, logs and metric rows of stages as lines, cut out of the pieces in which they come: memory for one piece and
one line, and each byte looked at once, however many there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.core.store import Store

LONGEST = 1 << 20
"""Bytes of a line; what is longer (a progress bar that never ends its line) comes in several."""
PIECE = 1 << 20
"""Bytes that a file is read by."""
RANGE = 4 * PIECE
"""Bytes that an object is read by."""
METRIC_ROWS = 1000
"""Metric rows kept of one result: more points than a chart has pixels. Rows with a held-out loss always stay."""


class LineCutter:
    """Takes pieces, gives lines."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def lines(self, piece: bytes) -> Iterator[bytes]:
        """The lines that a piece ends, without their ends; what follows the last of them waits for the next piece."""
        first, *rest = piece.split(b"\n")
        self._begun += first
        yield from self._cut()
        for text in rest:
            yield bytes(self._begun)
            self._begun = bytearray(text)
            yield from self._cut()

    def _cut(self) -> Iterator[bytes]:
        while len(self._begun) > LONGEST:
            yield bytes(self._begun[:LONGEST])
            del self._begun[:LONGEST]

    def end(self) -> Iterator[bytes]:
        """A last line that was cut off."""
        if self._begun:
            yield bytes(self._begun)
            self._begun = bytearray()


class FileLines:
    """The whole lines of a file. A last one without its end was cut off, or is just being written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        cutter = LineCutter()
        with open(self._path, "rb") as stream:
            while piece := stream.read(PIECE):
                yield from cutter.lines(piece)


class StoredLines:
    """The whole lines of an object, as often as they are asked for; none where there is no object."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._size = next((row.size for row in store.list(key) if row.key == key), None)

    @property
    def there(self) -> bool:
        """Whether there is an object."""
        return self._size is not None

    def __iter__(self) -> Iterator[bytes]:
        cutter, size = LineCutter(), self._size or 0
        for start in range(0, size, RANGE):
            yield from cutter.lines(self._store.get_range(self._key, start, min(start + RANGE, size)))


def metric_rows(store: Store, key: str | None) -> list[dict[str, float]]:
    """Metric rows of a result, as many as a chart shows. key: their object's, if there is one."""
    return thinned(StoredLines(store, key), METRIC_ROWS) if key else []


def thinned(lines: Iterable[bytes], most: int) -> list[dict[str, float]]:
    """Every n-th metric row, n a power of two, so that at most `most` stay, and more than half as many where there are
    enough; the first, the last, and rows with a held-out value always do. lines: JSON; gone through once, and parsed
    where they stay.
    """
    every, counted = 1, 0
    kept: list[tuple[int, bytes]] = []
    last: list[tuple[int, bytes]] = []
    for row in enumerate(lines):
        number, line = row
        last = [row]
        if number % every == 0 or b'"val_' in line:
            kept.append(row)
            counted += number % every == 0
        if counted > most:
            every *= 2
            kept = [(i, one) for i, one in kept if i % every == 0 or b'"val_' in one]
            counted = -(-(number + 1) // every)
    return [json.loads(line) for _, line in kept + (last if last[-1:] != kept[-1:] else [])]
