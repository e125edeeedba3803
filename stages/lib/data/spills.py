"""Files of records that are sorted into partitions: compressed, with a table of where each run of partitions begins.

    spill = Spiller(folder, "rows", layout, cut)
    spill.add(partitions, keys, numbers); spill.close()      # -> rows-00000, ..
    for partitions, records in read_files(entries, low, high): ...

A partition is one range of a file, and its records come in the order in which they were added. Memory is what a Spiller
may hold, and a chunk of the file that is read. `stages.lib.data.shuffle` makes a shuffle of them.
"""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from stages.core.artifacts import FileEntry
from stages.core.reading import open_file, unreadable
from stages.lib.data.numba_jit import njit
from stages.lib.formats.documents import read_only

FAN = 512
"""Files that one task reads, runs of partitions that one file is cut into."""
HELD_BYTES = 128 << 20
"""Bytes of records that a Spiller holds before it writes a file."""
CHUNK_BYTES = 1 << 20
"""Bytes of records that are compressed together: what a reader holds of a file."""
MAGIC = b"MOXSPIL2"
CODEC = "zstd"
LEVEL = 1


@dataclass(frozen=True)
class Layout:
    """What a record holds: `columns` of fixed width, each a type and how many of it, and a run of bytes or not."""

    columns: tuple[tuple[str, int], ...]
    payload: bool = False

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Layout:
        """From its JSON value."""
        return cls(tuple((str(name), int(width)) for name, width in value["columns"]), bool(value["payload"]))

    @property
    def record_bytes(self) -> int:
        """Bytes of a record, without its run of bytes."""
        return sum(np.dtype(name).itemsize * width for name, width in self.columns) + 8 * self.payload


@dataclass(frozen=True)
class Cut:
    """How many partitions there are, and how many of them a block of a file holds at first."""

    partitions: int
    per_block: int

    @classmethod
    def into(cls, partitions: int, fan: int | None = None) -> Cut:
        """So many partitions; no file has more blocks than a merge reads files."""
        return cls(max(1, partitions), -(-max(1, partitions) // (fan or FAN)))


@dataclass
class Records:
    """Some records, in order: a numpy array for each column, and the runs of bytes, one after another, with their
    ends ([records + 1] int64).
    """

    columns: list[np.ndarray]
    source: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    ends: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else len(self.ends) - 1

    def where(self, chosen: np.ndarray) -> Records:
        """Those at the places of a mask, or of an array of numbers."""
        places = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        columns = [column[places] for column in self.columns]
        return Records(columns) if len(self.ends) == 1 else Records(columns, *taken(self.source, self.ends, places))


@njit
def group(places, order, starts):
    """A stable counting sort: the order, and where each partition begins.

    places: [records] uint32, below the number of partitions. Written: order [records] int64; starts [partitions + 1]
    int64.
    """
    starts[:] = 0
    for place in places:
        starts[place + 1] += 1
    for p in range(starts.shape[0] - 1):
        starts[p + 1] += starts[p]
    for i in range(places.shape[0]):
        order[starts[places[i]]] = i
        starts[places[i]] += 1
    for p in range(starts.shape[0] - 1, 0, -1):
        starts[p] = starts[p - 1]
    starts[0] = 0


def taken(source: np.ndarray, ends: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of bytes at these places, one after another (`documents.read_only`), with their ends."""
    runs = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(ends) - 1, [None, pa.py_buffer(ends), pa.py_buffer(source)]
    ).take(pa.array(places))
    _, offsets, data = runs.buffers()
    new_ends = np.frombuffer(offsets, np.int64)[: len(places) + 1]
    return read_only(data), new_ends


# --- writing ----------------------------------------------------------------------------------------------------------


class Spiller:
    """Writes records into `<name>-NNNNN` of a folder, grouped by partition; a new file whenever `held` bytes of them
    are in memory. `low`: the first of its partitions, `high`: after the last.
    """

    def __init__(
        self, folder: Path, name: str, layout: Layout, cut: Cut, low: int = 0, high: int = 0, held: int = HELD_BYTES
    ) -> None:
        self._folder, self._name, self._layout, self._most = folder, name, layout, held
        self._low, self._high = low, high or cut.partitions
        self._per_block = cut.per_block
        self._places: list[np.ndarray] = []
        self._records: list[Records] = []
        self._size = 0
        self.files = self.records = 0

    def add(
        self,
        places: np.ndarray,
        *columns: np.ndarray,
        source: np.ndarray | None = None,
        ends: np.ndarray | None = None,
    ) -> None:
        """Add records. places: the partition of each ([records], integers); columns: of the layout; source, ends: their
        runs of bytes (`Records`). The arrays must not change afterwards.
        """
        if not len(places):
            return
        records = Records(list(columns))
        self._size += len(places) * (self._layout.record_bytes + 4)
        if source is not None and ends is not None:
            records = Records(list(columns), source[ends[0] : ends[-1]], ends - ends[0])
            self._size += int(ends[-1] - ends[0])
        self._places.append(places.astype(np.uint32) - np.uint32(self._low))
        self._records.append(records)
        self.records += len(places)
        if self._size >= self._most:
            self._write()

    def close(self) -> int:
        """Write what is held; how many records there were."""
        if self._records:
            self._write()
        return self.records

    def _write(self) -> None:
        places, records = np.concatenate(self._places), joined(self._records, self._layout)
        self._places, self._records, self._size = [], [], 0
        order, starts = np.empty(len(places), np.int64), np.empty(self._high - self._low + 1, np.int64)
        group(places, order, starts)
        records = records.where(order)
        path = self._folder / f"{self._name}-{self.files:05d}"
        write_grouped(path, self._layout, self._low, self._high, self._per_block, starts, records)
        self.files += 1


def joined(parts: list[Records], layout: Layout) -> Records:
    """Records one after another."""
    if len(parts) == 1:
        return parts[0]
    columns = [np.concatenate([part.columns[n] for part in parts]) for n in range(len(layout.columns))]
    if not layout.payload:
        return Records(columns)
    bases = np.concatenate([[0], np.cumsum([part.ends[-1] for part in parts])])
    ends = np.concatenate([[0], *(part.ends[1:] + base for part, base in zip(parts, bases, strict=False))])
    return Records(columns, np.concatenate([part.source for part in parts]), ends.astype(np.int64))


def write_grouped(
    path: Path, layout: Layout, low: int, high: int, per_block: int, starts: np.ndarray, records: Records
) -> None:
    """Write records that are grouped by partition: those of `low + p` are the records from `starts[p]` to
    `starts[p + 1]`. A file is magic, a JSON header, where each block begins, and the blocks: chunks, one after another.
    Header and chunks have a CRC32 each: a reader of small ranges has no other check (`stages.core.range_file`).
    """
    with open(path, "wb") as stream:
        _write(stream, layout, low, high, per_block, starts, records)


def _write(
    stream: BinaryIO, layout: Layout, low: int, high: int, per_block: int, starts: np.ndarray, records: Records
) -> None:
    head = json.dumps({"layout": asdict(layout), "low": low, "high": high, "per_block": per_block}).encode()
    head += b" " * (-len(head) % 8)
    blocks = -(-(high - low) // per_block)
    stream.write(MAGIC + struct.pack("<q", len(head)) + head)
    table = stream.tell()
    stream.seek(table + 8 * (blocks + 2))
    edges = starts[[*range(0, high - low, per_block), high - low]].tolist()
    offsets, codec = [stream.tell()], pa.Codec(CODEC, LEVEL)
    for block, (first, last) in enumerate(itertools.pairwise(edges)):
        if first < last:
            _write_block(stream, codec, layout, starts[block * per_block : (block + 1) * per_block + 1], records)
        offsets.append(stream.tell())
    stream.seek(table)
    table_bytes = np.array(offsets, "<i8").tobytes()
    stream.write(table_bytes + struct.pack("<q", _crc(head, table_bytes)))


def _write_block(stream: BinaryIO, codec: Any, layout: Layout, bounds: np.ndarray, records: Records) -> None:
    """The chunks of a block. bounds: where each of its partitions begins and the last ends."""
    for first, last in _chunks(int(bounds[0]), int(bounds[-1]), layout, records.ends):
        counts = np.diff(np.clip(bounds, first, last)).astype("<u4") if len(bounds) > 2 else np.empty(0, "<u4")
        streams = [counts, *(column[first:last] for column in records.columns)]
        if layout.payload:
            ends = records.ends[first : last + 1]
            streams += [np.diff(ends), records.source[ends[0] : ends[-1]]]
        packed = [codec.compress(_planes(part), asbytes=True) for part in streams]
        sizes = struct.pack(f"<{1 + len(packed)}q", last - first, *map(len, packed))
        stream.write(sizes + struct.pack("<q", _crc(sizes, *packed)))
        stream.writelines(packed)


def _chunks(first: int, last: int, layout: Layout, ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of records [first, last) of about CHUNK_BYTES, of one record at least."""
    while first < last:
        stop = min(last, first + max(1, CHUNK_BYTES // max(1, layout.record_bytes)))
        if layout.payload:
            stop = min(stop, max(first + 1, int(np.searchsorted(ends, ends[first] + CHUNK_BYTES, side="right")) - 1))
        yield first, stop
        first = stop


def _planes(column: np.ndarray) -> np.ndarray:
    """The first bytes of all values, then the second, ..: what values have in common comes together."""
    data = np.ascontiguousarray(column)
    return np.ascontiguousarray(data.view(np.uint8).reshape(-1, data.itemsize).T).ravel()


def _crc(*parts: bytes) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


# --- reading ----------------------------------------------------------------------------------------------------------


class _File:
    """An open file of a Spiller."""

    def __init__(self, stream: BinaryIO, entry: FileEntry) -> None:
        self._stream, self._entry = stream, entry
        magic, size = self._read(8), struct.unpack("<q", self._read(8))[0]
        if magic != MAGIC:
            raise unreadable(entry, f"no file of a shuffle: begins with {magic!r}")
        text = self._read(size)
        try:
            head = json.loads(text)
            self.layout, self.low, self.high = Layout.of(head["layout"]), int(head["low"]), int(head["high"])
            self._per_block = int(head["per_block"])
            table = self._read(8 * (-(-(self.high - self.low) // self._per_block) + 1))
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise unreadable(entry, f"its header: {error}") from error
        if struct.unpack("<q", self._read(8))[0] != _crc(text, table):
            raise unreadable(entry, "its header has another CRC32")
        self._offsets = np.frombuffer(table, "<i8")
        self._codec = pa.Codec(CODEC)

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size) if 0 <= size <= self._entry.size else b""
        if len(data) != size:
            raise unreadable(self._entry, f"it ends early: {self._entry.size} bytes were written")
        return data

    def read(self, low: int, high: int) -> Iterator[tuple[np.ndarray, Records]]:
        """The records of the partitions [low, high), chunk by chunk; and of each record its partition."""
        width = self._per_block
        first, last = max(low, self.low) - self.low, min(high, self.high) - self.low
        if first >= last:
            return
        for block in range(first // width, -(-last // width)):
            start, end = self._offsets[block : block + 2].tolist()
            if start < end:
                self._stream.seek(start)
            while start < end and self._stream.tell() < end:
                counts, records = self._chunk(min(width, self.high - self.low - block * width))
                at = self.low + block * width
                places = np.repeat(np.arange(at, at + len(counts), dtype=np.uint32), counts)
                inside = slice(*np.searchsorted(places, (low, high)).tolist())
                if inside != slice(0, len(places)):
                    places, records = places[inside], records.where(np.arange(inside.start, inside.stop))
                if len(places):
                    yield places, records

    def _chunk(self, partitions: int) -> tuple[np.ndarray, Records]:
        """How many records of each partition, and the records."""
        columns = self.layout.columns
        streams = 1 + len(columns) + 2 * self.layout.payload
        head, place = self._read(8 * (1 + streams)), self._stream.tell()
        crc, (records, *sizes) = struct.unpack("<q", self._read(8))[0], struct.unpack(f"<{1 + streams}q", head)
        parts = [self._read(size) for size in sizes]
        if _crc(head, *parts) != crc:
            raise unreadable(self._entry, f"the chunk at byte {place - len(head)} has another CRC32")
        packed = iter(parts)
        counts = self._values(next(packed), "<u4", partitions if partitions > 1 else 0)
        counts = counts if partitions > 1 else np.array([records])
        values = [self._values(next(packed), name, records * width) for name, width in columns]
        values = [c if w == 1 else c.reshape(-1, w) for c, (_, w) in zip(values, columns, strict=True)]
        if not self.layout.payload:
            return counts, Records(values)
        lengths = self._values(next(packed), "<i8", records)
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return counts, Records(values, self._values(next(packed), "u1", int(ends[-1])), ends)

    def _values(self, packed: bytes, name: str, count: int) -> np.ndarray:
        kind = np.dtype(name)
        data = np.frombuffer(self._codec.decompress(packed, count * kind.itemsize), np.uint8)
        return np.ascontiguousarray(data.reshape(kind.itemsize, -1).T).reshape(-1).view(kind)


def read_files(entries: Iterable[FileEntry], low: int, high: int) -> Iterator[tuple[np.ndarray, Records]]:
    """The records of the partitions [low, high) of files, one after another, chunk by chunk; of each its partition."""
    for entry in entries:
        with open_file(entry) as stream:
            yield from _File(stream, entry).read(low, high)


def nothing(layout: Layout) -> Records:
    """No record."""
    return Records([np.empty(0 if w == 1 else (0, w), name) for name, w in layout.columns])
