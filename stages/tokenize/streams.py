"""Streams of token ids that lie in many stored files, and the ranges of them that one task reads.

A stream is the files of one source, one after another, as often as its share of the mixture needs. `Layout` says for
any range of the ids of all streams in which files it lies, without opening one; `read` fetches such a range.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from stages.core.artifacts import FileEntry
from stages.core.errors import InfraError
from stages.core.range_file import BLOCK
from stages.core.reading import open_file
from stages.tokenize import hash_sampling
from stages.tokenize.hash_sampling import Cut

READ_TOKENS = 1 << 23
"""Ids read together where documents are picked out of them."""
READERS = 8
"""Files that one task reads at the same time: it waits for the store's answers, not for its processor."""


@dataclass(frozen=True)
class Encoded:
    """What one shard of a source became: its ids, how many, and what `hash_sampling` knows of its documents."""

    ids: FileEntry
    tokens: int
    documents: FileEntry | None = None


@dataclass(frozen=True)
class Stream:
    """Files of ids, one after another, and how many ids to take of them: the files are read again when they do not
    suffice.

    cut: a pass that does not need all of them takes the documents up to a place; None: the first ids.
    """

    files: Sequence[Encoded]
    take: int
    cut: Cut | None = None


@dataclass(frozen=True)
class _Pass:
    """One pass over a stream. start: number of its first id among those of all streams; ends: of each file."""

    stream: Stream
    start: int
    length: int
    sizes: np.ndarray
    cut: Cut | None
    ends: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", np.cumsum(self.sizes))


class Layout:
    """Where every id of some streams lies, counted over all of them. Raises ValueError when a stream is to give ids but
    has none.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.total = 0
        self._passes: list[_Pass] = []
        for stream in streams:
            sizes = np.array([file.tokens for file in stream.files], np.int64)
            left, whole = stream.take, int(sizes.sum())
            if left and not whole:
                raise ValueError("a stream without ids was asked for some")
            while left > 0:
                cut = stream.cut if left < whole else None
                sizes = sizes if cut is None else np.array(cut.taken, np.int64)
                length = min(left, int(sizes.sum()))
                self._passes.append(_Pass(stream, self.total, length, sizes, cut))
                self.total, left = self.total + length, left - length

    def pieces(self, first: int, end: int) -> list[dict[str, Any]]:
        """The ranges of files (JSON) that hold the ids from `first` to before `end`, in order."""
        pieces = []
        for part in self._passes:
            a, b = max(first - part.start, 0), min(end - part.start, part.length)
            if a >= b:
                continue
            for n in range(int(np.searchsorted(part.ends, a, "right")), int(np.searchsorted(part.ends, b, "left")) + 1):
                start, file = int(part.ends[n] - part.sizes[n]), part.stream.files[n]
                low, high = max(a - start, 0), min(b - start, int(part.sizes[n]))
                if low >= high:
                    continue
                piece: dict[str, Any] = {"ids": file.ids.value(), "first": low, "end": high}
                if part.cut is not None and file.documents is not None:
                    piece |= {"documents": file.documents.value(), "last": part.cut.last}
                pieces.append(piece)
        return pieces


def read(pieces: Sequence[Mapping[str, Any]], dtype: np.dtype) -> np.ndarray:
    """The ids of some ranges, one after another. Raises InfraError when a file is shorter than it should be."""
    ends = np.cumsum([0, *(piece["end"] - piece["first"] for piece in pieces)])
    ids = np.empty(int(ends[-1]), dtype)
    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(_read_one, pieces, [ids[a:b] for a, b in itertools.pairwise(ends)]))
    return ids


def _read_one(piece: Mapping[str, Any], out: np.ndarray) -> None:
    entry = FileEntry.model_validate(piece["ids"])
    with open_file(entry) as stream:
        if "last" not in piece:
            fill_at(stream, piece["first"] * out.itemsize, out, entry)
            return
        rows = hash_sampling.read_rows(FileEntry.model_validate(piece["documents"]))
        ends = np.cumsum(rows["tokens"], dtype=np.int64)
        chosen = rows["place"] <= np.uint64(piece["last"])
        position, at, first = 0, 0, 0  # among the ids taken, in `out`, in the documents
        while at < len(out):
            begin = int(ends[first - 1]) if first else 0
            end = max(first + 1, int(np.searchsorted(ends, begin + READ_TOKENS, side="right")))
            mine, sizes = chosen[first:end], rows["tokens"][first:end]
            count = int(sizes[mine].sum(dtype=np.int64))
            low, high = max(piece["first"] - position, 0), min(piece["end"] - position, count)
            if low < high:
                ids = np.empty(int(ends[end - 1]) - begin, out.dtype)
                fill_at(stream, begin * out.itemsize, ids, entry)
                out[at : at + high - low] = ids[np.repeat(mine, sizes)][low:high]
                at += high - low
            position, first = position + count, end


def fill_at(stream: BinaryIO, start: int, out: np.ndarray, entry: FileEntry) -> None:
    """Fill an array from a place in a file. Where checksums of its blocks are known, whole blocks are read: only those
    are held against them (`stages.core.range_file`).
    """
    data, done = out.reshape(-1).view(np.uint8), 0
    while done < len(data):
        at = start + done
        block = at // BLOCK * BLOCK
        if entry.blocks and not entry.is_local and (at > block or len(data) - done < BLOCK):
            rest = np.empty(max(0, min(BLOCK, entry.size - block)), np.uint8)
            stream.seek(block)
            fill(stream, rest, entry)
            piece = rest[at - block : at - block + len(data) - done]
            if not len(piece):
                raise InfraError(f"{entry.path} ended {len(data) - done} bytes too early: {entry.object}")
            data[done : done + len(piece)] = piece
            done += len(piece)
        else:
            whole = len(data) - done
            whole -= whole % BLOCK if entry.blocks and not entry.is_local else 0
            stream.seek(at)
            fill(stream, data[done : done + whole], entry)
            done += whole


def fill(stream: BinaryIO, out: np.ndarray, entry: FileEntry) -> None:
    """Read as many bytes as an array has. Raises InfraError when the file ends before."""
    view, done = out.reshape(-1).view(np.uint8).data, 0
    while done < len(view):
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise InfraError(f"{entry.path} ended {len(view) - done} bytes too early: {entry.object}")
        done += count
