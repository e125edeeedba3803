"""Scoring by shard, and the exact global share of the best without holding the scores: a radix selection over files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.lib.formats.corpus import Shard, read_shard
from stages.lib.formats.documents import DocumentWriter, text_buffer
from stages.quality.fasttext_scorer import Scorer

BLOCK = 1 << 20
"""Scores read together."""


def score(folder: Path, shard: dict[str, Any], tables: str, ngrams: int) -> Any:
    """Score a shard with the collapsed classifier; its histogram in tenths."""
    scorer = Scorer.load(Path(tables), ngrams)
    found = [scorer.score(*text_buffer(batch.column("text"))) for batch in read_shard(Shard(**shard), columns=["text"])]
    return write_scores(folder, np.concatenate(found))


def write_scores(folder: Path, scores: np.ndarray) -> list[int]:
    """Write a shard's scores; its histogram in tenths (fastText's probabilities reach 1.00001)."""
    scores.tofile(folder / "scores")
    return np.histogram(scores, bins=10, range=(0.0, 1.0 + 1e-4))[0].tolist()


def _keys(path: Path) -> Iterator[np.ndarray]:
    """The scores of a file as uint64 in the same order, block by block."""
    for start in range(0, path.stat().st_size // 8, BLOCK):
        yield ordered(np.fromfile(path, np.float64, BLOCK, offset=8 * start))


def ordered(scores: np.ndarray) -> np.ndarray:
    """uint64 values in the order of the (finite) scores."""
    bits = (scores + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def nth_largest(files: Sequence[Path], place: int) -> int:
    """The `place`-th largest score (from 1) of all files, as `ordered` has it: four passes of sixteen bits, exact."""
    prefix, left = 0, place
    for shift in (48, 32, 16, 0):
        counts = np.zeros(1 << 16, np.int64)
        for path in files:
            for keys in _keys(path):
                mine = keys if shift == 48 else keys[keys >> np.uint64(shift + 16) == np.uint64(prefix)]
                counts += np.bincount(
                    (mine >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.int64), minlength=1 << 16
                )
        above = np.cumsum(counts[::-1])[::-1]  # scores in this bin or a higher one
        digit = int(np.flatnonzero(above >= left)[-1])
        left -= int(above[digit] - counts[digit])
        prefix = prefix << 16 | digit
    return prefix


def best(files: Sequence[Path], keep: int) -> Iterator[np.ndarray]:
    """Of each file, which scores are among the `keep` best of all: [scores], bool. Of equal ones the earlier."""
    if not keep:
        for path in files:
            yield np.zeros(path.stat().st_size // 8, bool)
        return
    edge = np.uint64(nth_largest(files, keep))
    ties = keep - sum(int((keys > edge).sum()) for path in files for keys in _keys(path))
    for path in files:
        chosen = []
        for keys in _keys(path):
            equal = keys == edge
            chosen.append((keys > edge) | (equal & (np.cumsum(equal) <= ties)))
            ties -= min(ties, int(equal.sum()))
        yield np.concatenate([np.empty(0, bool), *chosen])


def keep(folder: Path, shard: dict[str, Any], chosen: str) -> Any:
    """Write the chosen documents of a shard."""
    mask, start = np.load(chosen), 0
    with DocumentWriter(folder) as writer:
        for batch in read_shard(Shard(**shard)):
            writer.add_batch(batch.filter(pa.array(mask[start : start + batch.num_rows])))
            start += batch.num_rows
    if not writer.documents:
        (folder / "part-00000.parquet").unlink()
    return {"documents": writer.documents, "bytes": writer.text_bytes}
