"""What can be removed, how old it has to be, and removing many of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from stages.core.store import Stored

HOUR, DAY = 3600.0, 86_400.0
TOGETHER = 50
"""Things that are removed with one look at what must stay: their leases are held meanwhile."""


@dataclass(frozen=True)
class Limits:
    """What may go. The defaults remove nothing that anybody could miss."""

    min_age: float = HOUR
    """Seconds: what was written later stays."""
    results_after: float | None = None
    """Seconds after which a result goes that no name points to, and no such result was made from; None: never."""
    work_after: float | None = None
    """Seconds without a write after which what an unpublished key could go on from goes; None: never."""
    uploads_after: float = HOUR
    """Seconds after which an upload in parts that nobody completed goes."""
    rehearsals_after: float | None = None
    """Seconds without a write after which all of a rehearsal goes; None: never."""
    damaged: bool = False
    """Whether what `moxin repair` set aside goes."""


@dataclass(frozen=True)
class Garbage:
    """One thing that goes, or that stays although no result needs it."""

    kind: str
    where: str
    objects: int
    bytes: int
    key: str = ""
    epoch: int = 0
    kept: str = ""
    """Why it stays; "": it goes."""
    removal: Callable[[], tuple[int, int]] = lambda: (0, 0)
    """Removes it, and says how many objects and bytes went: none of a key on which somebody works by now."""
    together: Callable[[Sequence[Garbage]], Generator[Gone]] | None = None
    """Instead of that: removes several of those that have the same, with one look at what must stay."""


Gone: TypeAlias = tuple[Garbage, tuple[int, int]]
"""Something, and how many objects and bytes of it went."""


@dataclass
class Group:
    """The objects below one folder."""

    objects: int = 0
    bytes: int = 0
    newest: float = 0.0
    epoch: int = 0
    committed: bool = False
    """Whether the marker of a checkpoint, or the digests of a result, are there."""

    def add(self, row: Stored) -> None:
        self.objects, self.bytes, self.newest = self.objects + 1, self.bytes + row.size, max(self.newest, row.written)


def remove_all(items: Sequence[Garbage]) -> Generator[Gone]:
    """Remove everything, in this order; each is told once it is gone."""
    for together, some in groupby(items, key=lambda item: item.together):
        if together is None:
            for item in some:
                yield item, item.removal()
            continue
        rest = list(some)
        for start in range(0, len(rest), TOGETHER):
            with closing(together(rest[start : start + TOGETHER])) as gone:  # leases are given back whatever happens
                yield from gone
