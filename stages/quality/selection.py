"""Scoring by shard, and the exact global share of the best: three steps of tasks, none of which holds all scores.

    score    the scores of a shard, and a coarse histogram of them
    bin      of the one bin that the last one kept lies in, the values and how often each shard has them
    keep     a shard's documents above the edge, and as many of those at it as its turn has

So every score is read twice after it was written, by the task that works on its shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.core.artifacts import FileEntry
from stages.core.reading import local_file, open_file
from stages.lib.data.workers import Pool
from stages.lib.formats.corpus import Shard, count_values, read_shard
from stages.lib.formats.documents import DocumentWriter, text_buffer
from stages.quality.fasttext_scorer import Scorer

SHIFT = 44
"""A bin of the histogram is what these bits of a score do not tell apart: 256 bins between a value and its double."""
FIRST, LAST = 2.0**-20, 2.0
"""Scores beyond share the bins at the ends (fastText's probabilities reach from -1e-5 to 1.00001)."""
FILES = 128
"""Shards whose scores one task looks at."""
EQUAL = np.dtype([("key", "<u8"), ("file", "<u4"), ("count", "<u4")])
COLUMNS = ("source", "license")
"""What the documents kept are counted by."""


def ordered(scores: np.ndarray) -> np.ndarray:
    """uint64 values in the order of the (finite) scores."""
    bits = (scores + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def _limits() -> tuple[int, int]:
    first, last = (ordered(np.array([FIRST, LAST])) >> np.uint64(SHIFT)).tolist()
    return first, last


def bins(keys: np.ndarray) -> np.ndarray:
    """The bin of each `ordered` score, from 0: int64."""
    first, last = _limits()
    return np.clip(keys >> np.uint64(SHIFT), first, last).astype(np.int64) - first


# --- tasks ------------------------------------------------------------------------------------------------------------


def score(folder: Path, shard: Mapping[str, Any], tables: Sequence[Mapping[str, Any]], ngrams: int) -> list[int]:
    """A task: score a shard with the collapsed classifier. Returns its histogram in tenths."""
    with ExitStack() as stack:
        paths = [stack.enter_context(local_file(FileEntry.model_validate(table))) for table in tables]
        scorer = Scorer.load(*paths, ngrams=ngrams)
        batches = read_shard(Shard(**shard), columns=["text"])
        parts = [scorer.score(*text_buffer(batch.column("text"))) for batch in batches]
    return write_scores(folder, np.concatenate(parts))


def write_scores(folder: Path, scores: np.ndarray) -> list[int]:
    """Write a shard's scores and their bins; its histogram in tenths (fastText's probabilities reach 1.00001)."""
    scores.tofile(folder / "scores")
    first, last = _limits()
    np.bincount(bins(ordered(scores)), minlength=last - first + 1).astype(np.uint32).tofile(folder / "bins")
    return np.histogram(scores, bins=10, range=(0.0, 1.0 + 1e-4))[0].tolist()


def _array(entry: FileEntry, dtype: np.dtype) -> np.ndarray:
    with open_file(entry) as stream:
        return np.frombuffer(stream.read(), dtype)


def _scores(value: Mapping[str, Any]) -> np.ndarray:
    return _array(FileEntry.model_validate(value), np.dtype(np.float64))


def add_up(folder: Path, files: Sequence[Mapping[str, Any]]) -> None:
    """A task: the bins of some shards together, in `bins`."""
    first, last = _limits()
    total = np.zeros(last - first + 1, np.int64)
    for file in files:
        total += _array(FileEntry.model_validate(file), np.dtype(np.uint32))
    total.tofile(folder / "bins")


def look_into(folder: Path, files: Sequence[Mapping[str, Any]], first: int, bin: int) -> None:
    """A task: the values in one bin of some shards, in `equal`. first: number of the first of these shards."""
    with open(folder / "equal", "wb") as out:
        for number, file in enumerate(files, first):
            keys = ordered(_scores(file))
            values, counts = np.unique(keys[bins(keys) == bin], return_counts=True)
            rows = np.empty(len(values), EQUAL)
            rows["key"], rows["file"], rows["count"] = values, number, counts
            out.write(rows.data)


def keep(folder: Path, shard: Mapping[str, Any], scores: Mapping[str, Any], edge: int, ties: int) -> Any:
    """A task: the documents of a shard whose scores are above the edge, and the first `ties` of those at it."""
    mine, start = _scores(scores), 0
    keys = ordered(mine)
    equal = keys == np.uint64(edge)
    mask = (keys > np.uint64(edge)) | (equal & (np.cumsum(equal) <= ties))
    counts: dict[str, Counter[str]] = {column: Counter() for column in COLUMNS}
    with DocumentWriter(folder) as writer:
        for batch in read_shard(Shard(**shard)):
            chosen = batch.filter(pa.array(mask[start : start + batch.num_rows]))
            writer.add_batch(chosen)
            for column, values in counts.items():
                count_values(values, chosen.column(column))
            start += batch.num_rows
    if not writer.documents:
        (folder / "part-00000.parquet").unlink()
    lowest = float(mine[mask].min()) if mask.any() else None
    return {"documents": writer.documents, "bytes": writer.text_bytes, "lowest": lowest, **counts}


# --- the driver -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edge:
    """Where the best end. ties: of each shard, how many documents at the edge stay."""

    key: int
    ties: tuple[int, ...]


def cut(pool: Pool, scores: Sequence[FileEntry], bins: Sequence[FileEntry], keep: int) -> Edge:
    """The edge of the `keep` best (one to all) of the scores of all shards. Of equal ones the earlier."""
    groups = range(0, len(scores), FILES)
    sums = pool.map("bins", add_up, [{"files": [e.value() for e in bins[n : n + FILES]]} for n in groups])
    total = np.sum([_array(result.file("bins"), np.dtype(np.int64)) for result in sums], axis=0)
    above = np.cumsum(total[::-1])[::-1]  # scores in this bin or a higher one
    bin = int(np.flatnonzero(above >= keep)[-1])
    left = keep - int(above[bin] - total[bin])
    tasks = [{"files": [e.value() for e in scores[n : n + FILES]], "first": n, "bin": bin} for n in groups]
    looks = pool.map("bin", look_into, tasks)
    rows = np.concatenate([_array(result.file("equal"), EQUAL) for result in looks])
    values, of = np.unique(rows["key"], return_inverse=True)
    counts = np.bincount(of, weights=rows["count"]).astype(np.int64)
    reached = np.cumsum(counts[::-1])[::-1]
    edge = int(np.flatnonzero(reached >= left)[-1])
    left -= int(reached[edge] - counts[edge])
    ties = np.zeros(len(scores), np.int64)
    mine = rows[of == edge]
    ties[mine["file"]] = mine["count"]
    ties = np.clip(left - (np.cumsum(ties) - ties), 0, ties)
    return Edge(int(values[edge]), tuple(ties.tolist()))
