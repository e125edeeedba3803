"""Streams of ids into windows in a random order, as an external sort through the store: any size, the same order
whatever the memory and the workers.

Every window has a random key that its number and the seed decide; the order is that of the keys. The keys are cut into
equal ranges, and each range becomes one output shard: a uniform sample of all windows, in random order. Three steps of
tasks, of which each reads ranges of files and writes one file:

    deal     a group of windows (GROUP_BYTES in memory) is sorted by key: `windows`, and where each range begins
    table    where the parts of each range lie, of at most FAN such files
    gather   the parts of one range are sorted by key: an output shard

A gather reads from as many files as there were deals. Beyond FAN of those (256 GiB) the deals cut the keys into fewer,
wider ranges, and each range is dealt again: every task then reads from the square root of the number of groups. Nobody
holds the order of all windows, opens more than READERS files at once, or looks at a key but to sort it.

Windows are not compressed on their way: zstd at its fastest took 5 CPU seconds a GiB to halve 16-bit ids of source code
(measured), and the store's client takes about as long for the bytes that this saves.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from stages.core.artifacts import FileEntry
from stages.core.errors import ConfigError, InfraError
from stages.core.reading import open_file
from stages.lib.data.workers import Pool, Result
from stages.lib.formats.shards import MOST_ROWS, check_ids, stored_rows
from stages.tokenize.streams import READERS, Layout, Stream, fill, read

Progress = Callable[[float, float, str], None]
GROUP_BYTES = 1 << 29
"""Ids that one task deals: what it holds in memory, and writes."""
SHARD_BYTES = 256 << 20
"""Of an output shard, about, where its windows are not fewer."""
FAN = 512
"""Files that one task reads from."""
BLOCK_BYTES = 32 << 20
"""Of the sorted windows that are written together."""


@dataclass(frozen=True)
class Windows:
    """What windows are like, and the seed of their order."""

    length: int
    dtype: str
    vocab_size: int
    seed: int

    @property
    def record(self) -> np.dtype:
        """A window on its way: its key, and its ids."""
        return np.dtype([("key", "<u8"), ("ids", self.dtype, (self.length,))])

    @property
    def size(self) -> int:
        """Bytes of the ids of one."""
        return self.length * np.dtype(self.dtype).itemsize


def window_keys(start: int, count: int, seed: int) -> np.ndarray:
    """Random keys of the windows from `start` on: [count], uint64."""
    return keys_of(np.arange(start, start + count, dtype=np.uint64), seed)


def keys_of(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Random keys of windows, uint64. SplitMix64 (Steele et al. 2014) of their numbers."""
    with np.errstate(over="ignore"):
        value = numbers.astype(np.uint64) + (np.uint64(seed & 0xFFFFFFFF) << np.uint64(32)) + np.uint64(1)
        value *= np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return value ^ value >> np.uint64(31)


def edges(first: int, end: int, step: int, partitions: int) -> np.ndarray:
    """The lowest key of every `step`-th partition after `first` and before `end`: uint64. The ranges of all partitions
    are equal within one key.
    """
    return np.array([-(-(n << 64) // partitions) for n in range(first + step, end, step)], np.uint64)


# --- tasks ------------------------------------------------------------------------------------------------------------


def deal(
    folder: Path,
    pieces: Sequence[Mapping[str, Any]],
    start: int,
    windows: Mapping[str, Any],
    step: int,
    partitions: int,
) -> None:
    """A task: windows from number `start` on, cut from ranges of ids, into `windows` by their keys; `parts` says where
    every `step`-th partition begins.
    """
    kind = Windows(**windows)
    ids = read(pieces, np.dtype(kind.dtype)).reshape(-1, kind.length)
    keys = window_keys(start, len(ids), kind.seed)
    _write_sorted(folder, keys, ids, edges(0, partitions, step, partitions))


def deal_again(
    folder: Path,
    table: Mapping[str, Any],
    part: int,
    windows: Mapping[str, Any],
    first: int,
    end: int,
    partitions: int,
) -> None:
    """A task: as `deal`, of one part of several files, into the partitions from `first` to before `end`."""
    rows = _read_part(table, part, Windows(**windows).record)
    _write_sorted(folder, rows["key"], rows["ids"], edges(first, end, 1, partitions))


def gather(folder: Path, table: Mapping[str, Any], part: int, windows: Mapping[str, Any]) -> int:
    """A task: one part of several files becomes `shard`, its windows in the order of their keys. Returns how many."""
    kind = Windows(**windows)
    rows = _read_part(table, part, kind.record)
    order = np.argsort(rows["key"], kind="stable")
    step = _block(rows.dtype)
    with open(folder / "shard", "wb") as out:
        for n in range(0, len(order), step):
            block = rows["ids"][order[n : n + step]]
            check_ids(block, kind.vocab_size)
            out.write(stored_rows(block).data)
    return len(rows)


def collate(folder: Path, files: Sequence[Mapping[str, Any]]) -> None:
    """A task: `table` says of every part in which ranges of the files it lies.

    files: of each deal its entries `windows` and `parts`. In `table`: three sizes, for each part the first window in
    every file, the checksums of the parts, the entries of the files.
    """
    with ThreadPoolExecutor(READERS) as readers:
        tables = list(readers.map(_read_parts, (FileEntry.model_validate(file["parts"]) for file in files)))
    starts, sums = (np.stack([table[n] for table in tables], axis=1) for n in (0, 1))
    names = json.dumps(
        [{**file["windows"], "blocks": ""} for file in files]
    ).encode()  # its parts have sums of their own
    with open(folder / "table", "wb") as out:
        out.write(np.array([len(files), len(sums), len(names)], np.int64).data)
        for array in (starts, sums):
            out.write(np.ascontiguousarray(array).data)
        out.write(names)


def _write_sorted(folder: Path, keys: np.ndarray, ids: np.ndarray, inner: np.ndarray) -> None:
    """Write windows in the order of their keys, and where the parts between the inner edges begin, with checksums."""
    order = np.argsort(keys, kind="stable")
    starts = np.concatenate([[0], np.searchsorted(keys[order], inner), [len(order)]]).astype(np.int64)
    sums = np.zeros(len(inner) + 1, np.uint64)
    kind = Windows(ids.shape[1], ids.dtype.name, 0, 0).record
    step, buffer = _block(kind), np.empty(0, kind)
    with open(folder / "windows", "wb") as out:
        for part, (first, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
            digest = xxhash.xxh3_64()
            for n in range(first, end, step):
                mine = order[n : min(n + step, end)]
                if len(buffer) < len(mine):
                    buffer = np.empty(len(mine), kind)
                rows = buffer[: len(mine)]
                rows["key"], rows["ids"] = keys[mine], ids[mine]
                digest.update(rows.data)
                out.write(rows.data)
            sums[part] = digest.intdigest()
    with open(folder / "parts", "wb") as out:
        out.write(starts.data)
        out.write(sums.data)


def _block(kind: np.dtype) -> int:
    return max(1, BLOCK_BYTES // kind.itemsize)


def _read_parts(entry: FileEntry) -> tuple[np.ndarray, np.ndarray]:
    """Where the parts of a file begin, [parts + 1] int64, and their checksums, [parts] uint64."""
    with open_file(entry) as stream:
        data = stream.read()
    parts = (len(data) // 8 - 1) // 2
    return np.frombuffer(data, np.int64, parts + 1), np.frombuffer(data, np.uint64, parts, 8 * (parts + 1))


def _read_part(table: Mapping[str, Any], part: int, kind: np.dtype) -> np.ndarray:
    """The windows of one part, of all files of a table: [n], `record`, in the order of the files."""
    with open_file(FileEntry.model_validate(table)) as stream:
        count, parts, size = np.frombuffer(stream.read(24), np.int64).tolist()
        stream.seek(24 + 8 * count * part)
        starts = np.frombuffer(stream.read(16 * count), np.int64).reshape(2, count)
        stream.seek(24 + 8 * count * (parts + 1 + part))
        sums = np.frombuffer(stream.read(8 * count), np.uint64)
        stream.seek(24 + 8 * count * (2 * parts + 1))
        files = [FileEntry.model_validate(value) for value in json.loads(stream.read(size))]
    ends = np.cumsum([0, *(starts[1] - starts[0]).tolist()])
    rows = np.empty(int(ends[-1]), kind)
    targets = [rows[a:b] for a, b in itertools.pairwise(ends)]
    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(_read_range, files, starts[0].tolist(), targets, sums.tolist()))
    return rows


def _read_range(entry: FileEntry, start: int, out: np.ndarray, checksum: int) -> None:
    """Windows of one file, checked. What came wrong is fetched once more: it may have been damaged on its way."""
    if not len(out):
        return
    for _ in range(2):
        with open_file(entry) as stream:
            stream.seek(start * out.itemsize)
            fill(stream, out, entry)
        if xxhash.xxh3_64_intdigest(out.data) == checksum:
            return
    raise InfraError(f"windows {start} to {start + len(out)} of {entry.object} came damaged twice: try again")


# --- the driver -------------------------------------------------------------------------------------------------------


def shuffle(
    pool: Pool, name: str, streams: Sequence[Stream], windows: Windows, progress: Progress | None = None
) -> list[tuple[FileEntry, int]]:
    """The windows of the streams in the order of their keys: shards, in order, and the windows of each. What does not
    fill the last window is left out. name: of the steps, beside others of this pool.
    """
    layout = Layout(streams)
    count, length = layout.total // windows.length, windows.length
    if not count:
        return []
    partitions = -(-count // min(MOST_ROWS, max(1, SHARD_BYTES // windows.size)))
    group = max(1, GROUP_BYTES // windows.size)
    groups = -(-count // group)
    ranges = partitions if groups <= FAN else min(partitions, math.isqrt(groups - 1) + 1)
    step = -(-partitions // ranges)
    if groups > FAN * len(range(0, partitions, step)):
        raise ConfigError(
            f"{count} windows of {windows.size} bytes are {groups} groups of {GROUP_BYTES} bytes: {FAN**2} can be"
            " shuffled: take fewer (max_tokens), or several nodes with draw"
        )
    common = {"windows": asdict(windows)}
    tasks = []
    for start in range(0, count, group):
        pieces = layout.pieces(start * length, min(start + group, count) * length)
        tasks.append({"pieces": pieces, "start": start, "step": step, "partitions": partitions, **common})
    dealt = pool.map(f"{name}-deal", deal, tasks, progress)
    if step > 1:
        parts = _deal_again(pool, name, dealt, step, partitions, common, progress)
    else:
        parts = [(table, n) for table in _tables(pool, f"{name}-table", [dealt]) for n in range(partitions)]
    tasks = [{"table": table, "part": part, **common} for table, part in parts]
    gathered = pool.map(f"{name}-gather", gather, tasks, progress)
    shards = [(result.file("shard"), int(result.value)) for result in gathered if result.value]
    if sum(rows for _, rows in shards) != count:
        raise InfraError(f"{name}: {sum(rows for _, rows in shards)} windows came out of {count}: try again")
    return shards


def _deal_again(
    pool: Pool,
    name: str,
    dealt: Sequence[Result],
    step: int,
    partitions: int,
    common: Mapping[str, Any],
    progress: Progress | None,
) -> list[tuple[dict[str, Any], int]]:
    """Deal each wide range by as many tasks as hold it; of every partition its table, and its number there."""
    starts = range(0, partitions, step)
    width = len(starts)  # files of a task: together they hold about one group of each range
    tables = _tables(pool, f"{name}-table", [dealt[n : n + width] for n in range(0, len(dealt), width)])
    wide = [
        {"table": table, "part": part, "first": n, "end": min(n + step, partitions), "partitions": partitions, **common}
        for part, n in enumerate(starts)
        for table in tables
    ]
    again = pool.map(f"{name}-deal-again", deal_again, wide, progress)
    of_each = [again[n : n + len(tables)] for n in range(0, len(again), len(tables))]
    narrow = _tables(pool, f"{name}-table-again", of_each)
    return [(table, part) for table, n in zip(narrow, starts, strict=True) for part in range(min(step, partitions - n))]


def _tables(pool: Pool, name: str, groups: Sequence[Sequence[Result]]) -> list[dict[str, Any]]:
    tasks = [
        {"files": [{part: result.file(part).value() for part in ("windows", "parts")} for result in group]}
        for group in groups
    ]
    return [result.file("table").value() for result in pool.map(name, collate, tasks)]
