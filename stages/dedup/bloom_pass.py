"""Documents through Bloom filters, one for each partition of the corpus, in order.

A partition goes through its filter a leg at a time: a task takes the filter that the task before it left, filters
shard after shard, and after a while leaves the filter with what it wrote. What a killed worker had done since its leg
began is done again, to the same documents: where a leg ends decides nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.core.artifacts import FileEntry
from stages.core.errors import InfraError, InputError
from stages.core.reading import open_file
from stages.dedup.bloom_filter import BloomFilter
from stages.dedup.bloom_size import BYTES_PER_NGRAM, filter_bytes
from stages.dedup.funnel import Funnel
from stages.dedup.limits import filter_problem
from stages.lib.data.workers import Pool, Result
from stages.lib.formats.corpus import read_parts
from stages.lib.formats.documents import DocumentWriter, text_buffer

FILTER = "filter.bits"
LEG_BYTES = 256 << 30
"""Text that a leg is given at most, or twice the filter's bytes: a task carries what it may get to."""
CHUNK = 64 << 20
"""Bytes of a filter that are read or written at once."""


@dataclass(frozen=True)
class Pace:
    """When a leg ends: after `seconds`, or when it wrote `written` bytes, but not before it filtered as much text as
    its filter has bytes. All copies of a filter together are thus no larger than the text.
    """

    seconds: float = 1800
    written: int = 2 << 30
    least: float = 1.0
    """Text for each byte of the filter."""


@dataclass(frozen=True)
class Kept:
    """What a step left of one shard: its parts, and the bytes of their text."""

    parts: tuple[FileEntry, ...]
    text_bytes: int


def filter_documents(
    pool: Pool,
    partitions: Sequence[Sequence[Kept]],
    memory_gib: float,
    node: str,
    funnel: Funnel,
    progress: Callable[[float, float, str], None] | None = None,
    pace: Pace | None = None,
) -> list[FileEntry]:
    """Send the shards of each partition through a filter of their own, in order; the parts of what is left.

    memory_gib: for the filters that are at work at one time: as many partitions as fit. Raises InputError, naming the
    node, when one filter does not fit.
    """
    sizes = [sum(kept.text_bytes for kept in shards) for shards in partitions]
    largest = max(sizes, default=0)
    if problem := filter_problem(largest, memory_gib):
        raise InputError(problem.line(node))
    together = max(1, int(memory_gib * (1 << 30)) // filter_bytes(largest))
    funnel.restart()
    runs = [_Run(shards, size) for shards, size in zip(partitions, sizes, strict=True)]
    for first in range(0, len(runs), together):
        step = 0
        while going := [run for run in runs[first : first + together] if run.done < len(run.shards)]:
            tasks = [run.task(pace or Pace()) for run in going]
            results = pool.map(f"bloom-{first:04d}-{step:04d}", filter_leg, tasks)
            for run, result in zip(going, results, strict=True):
                run.add(result)
                funnel.add(result.value["funnel"])
            step += 1
            if progress:
                progress(sum(run.done for run in runs), sum(map(len, partitions)), "shards (bloom)")
    return [part for run in runs for part in run.left]


@dataclass
class _Run:
    """How far a partition is."""

    shards: Sequence[Kept]
    text_bytes: int
    done: int = 0
    state: FileEntry | None = None
    """The filter after what is done."""
    left: list[FileEntry] = field(default_factory=list)

    def task(self, pace: Pace) -> dict[str, Any]:
        """The arguments of the next leg."""
        end, held, most = self.done, 0, max(LEG_BYTES, 2 * filter_bytes(self.text_bytes))
        while end < len(self.shards) and (end == self.done or held < most):
            held, end = held + self.shards[end].text_bytes, end + 1
        return {
            "shards": [[part.value() for part in kept.parts] for kept in self.shards[self.done : end]],
            "last": end == len(self.shards),
            "expected": max(1, self.text_bytes // BYTES_PER_NGRAM),
            "state": self.state.value() if self.state else None,
            "pace": asdict(pace),
        }

    def add(self, result: Result) -> None:
        """What a leg left."""
        self.done += result.value["shards"]
        self.state = next((entry for entry in result.files if entry.path == FILTER), None)
        self.left += [entry for entry in result.files if entry.path != FILTER]


def filter_leg(
    folder: Path,
    shards: list[list[dict[str, Any]]],
    last: bool,
    expected: int,
    state: dict[str, Any] | None,
    pace: dict[str, Any],
) -> Any:
    """Filter shards until the leg is over: their parts in `NNNNNN/`, and the filter where more shards follow; how many
    they were.
    """
    machine, limits, funnel = BloomFilter(expected), Pace(**pace), Funnel()
    if state is not None:
        _load(machine.bits, FileEntry.model_validate(state))
    begun, written, seen, number = time.monotonic(), 0, 0, 0
    for number, parts in enumerate(shards, 1):
        target = folder / f"{number - 1:06d}"
        target.mkdir()
        seen += _filter_shard(machine, [FileEntry.model_validate(part) for part in parts], target, funnel)
        written += sum(path.stat().st_size for path in target.iterdir())
        late = time.monotonic() - begun >= limits.seconds or written >= limits.written
        if late and seen >= limits.least * machine.bits.nbytes:
            break
    if number < len(shards) or not last:
        _save(machine.bits, folder / FILTER)
    return {"funnel": funnel.value(), "shards": number}


def _load(bits: np.ndarray, entry: FileEntry) -> None:
    """Read a filter that a leg left into memory."""
    if entry.size != bits.nbytes:
        raise InfraError(f"{entry.path}: a filter of {entry.size} bytes, not {bits.nbytes}: remove this attempt's work")
    with open_file(entry) as stream:
        for piece in _pieces(bits):
            while len(piece):
                if not (count := stream.readinto(piece)):  # type: ignore[attr-defined]
                    raise InfraError(f"{entry.path}: the filter ends early")
                piece = piece[count:]


def _save(bits: np.ndarray, path: Path) -> None:
    with open(path, "wb") as stream:
        for piece in _pieces(bits):
            stream.write(piece)


def _pieces(bits: np.ndarray) -> Iterator[memoryview]:
    view: Any = memoryview(bits.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    return (view[start : start + CHUNK] for start in range(0, len(view), CHUNK))


def _filter_shard(machine: BloomFilter, parts: Sequence[FileEntry], target: Path, funnel: Funnel) -> int:
    """Filter the documents of one shard; bytes of their text."""
    seen = 0
    with DocumentWriter(target) as writer:
        for batch in read_parts(parts, rows=4096):
            source, ends = text_buffer(batch.column("text"))
            left, left_ends = machine.filter(source, ends)
            sizes, left_sizes = np.diff(ends), np.diff(left_ends)
            gone = _blank(left, left_ends)
            cut = (left_sizes < sizes) & ~gone
            funnel.count("seen before (Bloom filter)", int(gone.sum()), int(sizes[gone].sum()))
            funnel.count("paragraphs seen before", int(cut.sum()), int((sizes - left_sizes)[cut].sum()))
            kept = batch
            if cut.any() or gone.any():
                text = pa.LargeStringArray.from_buffers(len(left_sizes), pa.py_buffer(left_ends), pa.py_buffer(left))
                place = batch.schema.get_field_index("text")
                kept = batch.set_column(place, batch.schema.field(place), text)
            if gone.any():
                kept = kept.filter(pa.array(~gone))
            writer.add_batch(kept)
            funnel.keep(kept)
            seen += int(sizes.sum())
    if not writer.documents:
        shutil.rmtree(target)
        target.mkdir()
    return seen


def _blank(source: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which texts hold nothing but white space: [texts], bool."""
    sizes = np.diff(ends)
    blank = sizes == 0
    for d in np.flatnonzero((sizes > 0) & (sizes < 64)):
        blank[d] = not source[ends[d] : ends[d + 1]].tobytes().decode().strip()
    return blank
