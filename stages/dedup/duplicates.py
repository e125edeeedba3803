"""Which documents are duplicates: the steps from signing to clusters, driven from here.

Every step runs per shard, partition, range or slice through `stages.lib.data.workers`, and what passes between them
through `stages.lib.data.shuffle`. What is held here over the whole corpus is one byte of fate and eight of cluster for
each document; pairs pass by a chunk at a time.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from stages.core.artifacts import FileEntry
from stages.dedup import lsh, verification
from stages.dedup.lsh import BANDS, DIGESTS, EXACT, NEAR
from stages.dedup.spec import DedupConfig, Recipe
from stages.dedup.union_find import around, clusters, cut_slices, splice, unite
from stages.lib.data import stored_array
from stages.lib.data.shuffle import Cut, Drop, Layout, Shuffled, Spiller, gather
from stages.lib.data.spills import read_files
from stages.lib.data.workers import Pool, Result
from stages.lib.formats.corpus import Shard

RECORD_BYTES = 32
"""Memory of one LSH record while its partition is sorted: key, document, order, and the sorted key and document."""
SLICE_BYTES = 64 << 20
"""Text of the candidates that one task verifies, about: a shard's worth of work."""
SLICE_DOCUMENTS = 1 << 16
"""The most of them."""
READERS = 8
"""Files that are fetched at the same time."""

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[float, float, str], None]


@dataclass
class Duplicates:
    """What was found: the fate of every document ([documents], int8); rows (first document, document) of all clusters,
    sorted; and how many pairs were candidates and verified, where that was asked.
    """

    fate: np.ndarray
    groups: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.uint32))
    pairs: Counter[str] = field(default_factory=Counter)


class Search:
    """The search for duplicates in one corpus."""

    def __init__(
        self, pool: Pool, config: DedupConfig, recipe: Recipe, work: Sequence[Shard], progress: Progress | None = None
    ) -> None:
        self._pool, self._config, self._recipe, self._work, self._progress = pool, config, recipe, work, progress
        self._memory, self._total = config.memory_mib << 20, work[-1].start + work[-1].rows
        self._most = max(1, self._memory // (3 * RECORD_BYTES))
        self._bands, self._digests = (
            self._partitions(records, layout) for records, layout in ((max(1, recipe.bands), BANDS), (1, DIGESTS))
        )
        self._width = max(1, self._memory // (max(1, recipe.bands) * RECORD_BYTES))
        """Documents in a range: of each, a star and a chain of every band fit."""
        self._ranges = Cut.into(-(-self._total // self._width))
        self._text_bytes = 0

    def _partitions(self, records: int, layout: Layout) -> Cut:
        """How so many records of each document are cut, by hash: a power of two."""
        size = self._total * records * RECORD_BYTES * layout.record_bytes / BANDS.record_bytes
        return Cut.into(1 << max(0, math.ceil(math.log2(max(1.0, 4 * size / self._memory)))))

    def run(self) -> Duplicates:
        """All steps, one after another."""
        recipe = self._recipe
        if not (recipe.exact or recipe.bands or recipe.min_characters):
            return Duplicates(np.zeros(self._total, np.int8))
        signed = self._sign()
        duplicates = Duplicates(self._exact(signed))
        if recipe.bands and (duplicates.fate == lsh.KEPT).any():
            self._near(signed, duplicates)
        return duplicates

    def _map(self, name: str, function: Callable[..., Any], tasks: Sequence[dict[str, Any]]) -> list[Result]:
        return self._pool.map(name, function, tasks, self._progress)

    def _sign(self) -> list[Result]:
        recipe, banded = self._recipe, bool(self._recipe.bands)
        bands, rows = max(1, recipe.bands), recipe.rows if banded else 1
        permutations = recipe.permutations if banded else 1
        common = {
            "signer": [recipe.shingle, recipe.width, permutations, bands, rows, self._config.seed],
            "least": {
                "characters": recipe.min_characters,
                "filter": recipe.short_filter,
                "tokens": recipe.min_tokens,
            },
            "bands": asdict(self._bands),
            "digests": asdict(self._digests),
        }
        signed = self._map("sign", lsh.sign, [{"shard": asdict(shard), **common} for shard in self._work])
        self._text_bytes = sum(result.value["bytes"] for result in signed)
        return signed

    def _exact(self, signed: list[Result]) -> np.ndarray:
        """The fate of every document after the short filter and the exact duplicates: [documents], int8."""
        fate = np.zeros(self._total, np.int8)
        for shard, fates in zip(self._work, _loaded(_named(result, "fates") for result in signed), strict=True):
            if len(fates):  # some of its documents are short
                fate[shard.start : shard.start + shard.rows] = fates
        if self._recipe.exact:
            digests = self._gather("digests", [_named(result, "digests") for result in signed], self._digests)
            tasks = [{"source": digests.source(p), "most": self._most} for p in range(self._digests.partitions)]
            for again in _loaded(result.files for result in self._map("exact", lsh.exact, tasks)):
                fate[again] = EXACT
        return fate

    def _gather(self, name: str, files: list[Sequence[FileEntry]], cut: Cut, drop: Drop | None = None) -> Shuffled:
        return gather(self._pool, name, files, cut, self._progress, drop=drop)

    def _near(self, signed: list[Result], duplicates: Duplicates) -> None:
        """Find the clusters of near duplicates, and mark them in the fates."""
        recipe, fate = self._recipe, duplicates.fate
        pairs = self._candidates(signed, fate)
        if recipe.verify:
            duplicates.pairs["candidate_pairs"] = sum(result.value for result in pairs)
            edges = self._verified(pairs)
            duplicates.pairs["verified_pairs"] = sum(result.value["edges"] for result in edges)
            duplicates.groups = self._joined(edges)
        else:
            duplicates.groups = self._joined(pairs)
        groups = duplicates.groups
        if not recipe.extremes:
            fate[groups[groups[:, 0] != groups[:, 1], 1]] = NEAR
        elif len(groups):
            for gone in _loaded(result.files for result in self._extremes(groups)):
                fate[gone] = NEAR

    def _candidates(self, signed: list[Result], fate: np.ndarray) -> list[Result]:
        """The pairs that share a band, of documents that are left; a result for each range of documents."""
        drop = None
        if (fate == EXACT).any():
            marks = stored_array.store(self._pool, "exact-marks", (fate == EXACT).view(np.int8))
            drop = Drop(marks, 1, [(shard.start, shard.start + shard.rows) for shard in self._work])
        bands = self._gather("bands", [_named(result, "bands") for result in signed], self._bands, drop)
        common = {
            "star": not self._recipe.verify,
            "most": self._most,
            "width": self._width,
            "ranges": asdict(self._ranges),
        }
        tasks = [{"source": bands.source(p), **common} for p in range(self._bands.partitions)]
        paired = self._map("pair", lsh.pair, tasks)
        ranges = self._gather("pairs", [result.files for result in paired], self._ranges)
        most = max(1, self._memory // RECORD_BYTES)
        tasks = [{"source": ranges.source(n), "most": most} for n in range(self._ranges.partitions)]
        return self._map("merge", lsh.merge, tasks)

    def _joined(self, results: Iterable[Result]) -> np.ndarray:
        """The clusters that the pairs of all results connect, see `clusters`."""
        parent = np.arange(self._total, dtype=np.uint32)
        for firsts, seconds in _pairs(results):
            unite(parent, firsts, seconds)
        return clusters(parent)

    def _slices(self, pairs: list[Result]) -> tuple[np.ndarray, int]:
        """The slice of every document ([documents] uint32; NOWHERE: no pair is of it), and how many there are."""
        parent, following = np.arange(self._total, dtype=np.uint32), np.arange(self._total, dtype=np.uint32)
        for firsts, seconds in _pairs(pairs):
            splice(parent, following, firsts, seconds)
        order = around(parent, following)
        del following
        most = SLICE_BYTES * self._total // max(1, self._text_bytes)
        places = np.empty(len(order), np.uint32)
        count = cut_slices(parent, order, max(1, min(most, SLICE_DOCUMENTS)), places)
        slices = parent
        slices[:] = verification.NOWHERE
        slices[order] = places
        return slices, int(count)

    def _verified(self, pairs: list[Result]) -> list[Result]:
        """Of the candidates' pairs those that reach the threshold; a result for each slice."""
        slices, count = self._slices(pairs)
        if not count:
            return []
        cut, stored = Cut.into(count), stored_array.store(self._pool, "slices", slices)
        del slices
        tasks = [
            {
                "pairs": [entry.value() for entry in result.files],
                "slices": stored.part(n * self._width, min((n + 1) * self._width, self._total)),
                "width": self._width,
                "cut": asdict(cut),
                "ranges": asdict(self._ranges),
            }
            for n, result in enumerate(pairs)
        ]
        assigned = self._map("assign", verification.assign, tasks)
        by_slice = self._gather("slice-pairs", [_named(result, "pairs") for result in assigned], cut)
        besides = None
        if any(result.value["besides"] for result in assigned):
            besides = self._gather("besides", [_named(result, "besides") for result in assigned], self._ranges)
        texts = self._spill("spill", stored, cut, besides)
        tasks = [{"pairs": by_slice.source(n), "texts": texts.source(n), "rule": self._rule()} for n in range(count)]
        return self._map("verify", verification.verify, tasks)

    def _spill(
        self, name: str, slices: stored_array.StoredArray, cut: Cut, besides: Shuffled | None = None
    ) -> Shuffled:
        """Bring the texts of candidates together by slice. besides: what goes to others, too."""
        tasks = []
        for shard in self._work:
            low, high = shard.start, shard.start + shard.rows
            ranges = range(low // self._width, -(-high // self._width)) if besides else ()
            sources = [besides.source(n) for n in ranges] if besides else []
            tasks.append(
                {
                    "shard": asdict(shard),
                    "slices": slices.part(low, high),
                    "besides": sources,
                    "cut": asdict(cut),
                }
            )
        spilled = self._map(name, verification.spill, tasks)
        return self._gather(f"{name}-texts", [result.files for result in spilled], cut)

    def _rule(self) -> dict[str, Any]:
        recipe = self._recipe
        return {"kind": recipe.shingle, "width": recipe.width, "threshold": recipe.threshold}

    def _extremes(self, groups: np.ndarray) -> list[Result]:
        """Of every cluster the documents that go; a result for each slice of some thousand documents, clusters
        whole.
        """
        starts = np.flatnonzero(np.concatenate([[True], groups[1:, 0] != groups[:-1, 0]]))
        cuts = [0]
        while (at := int(np.searchsorted(starts, cuts[-1] + (1 << 13)))) < len(starts):
            cuts.append(int(starts[at]))
        number = np.repeat(np.arange(len(cuts), dtype=np.uint32), np.diff([*cuts, len(groups)]))
        slices = np.full(self._total, verification.NOWHERE)
        slices[groups[:, 1]] = number
        cut, stored = Cut.into(len(cuts)), stored_array.store(self._pool, "extremes-slices", slices)
        del slices
        texts = self._spill("spill-extremes", stored, cut)

        def write(folder: Any) -> None:
            spiller = Spiller(folder, "members", verification.MEMBERS, cut)
            spiller.add(number, groups)
            spiller.close()

        members = self._gather("members", [stored_array.store_files(self._pool, "members", write)], cut)
        tasks = [
            {"members": members.source(n), "texts": texts.source(n), "rule": self._rule()} for n in range(len(cuts))
        ]
        return self._map("extremes", verification.extremes, tasks)


def _named(result: Result, kind: str) -> list[FileEntry]:
    """The files of one kind that a task left."""
    return [entry for entry in result.files if entry.path.startswith(f"{kind}-")]


def _pairs(results: Iterable[Result]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of all results, some at a time."""
    for entry in (entry for result in results for entry in result.files):
        for _, records in read_files([entry], 0, 1):
            pairs = records.columns[0]
            yield (pairs >> np.uint64(32)).astype(np.uint32), (pairs & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _loaded(files: Iterable[Sequence[FileEntry]]) -> Iterator[np.ndarray]:
    """The only column of the files of each result, in order; some results are fetched ahead."""

    def load(some: Sequence[FileEntry]) -> np.ndarray:
        parts = [records.columns[0] for _, records in read_files(some, 0, 1)]
        return np.concatenate(parts) if parts else np.empty(0, np.uint8)

    return _ahead(load, files)


def _ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The function of every item, in order, a few of them ahead in threads."""
    with ThreadPoolExecutor(READERS) as threads:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > 2 * READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
