"""Run `dedup`: sign every document, find and verify candidates, keep one of each cluster; then substrings, then the
Bloom filter.

Every step runs per shard, partition or range through `stages.lib.data.workers`; what is held in memory over the whole
corpus is one byte of fate and eight of cluster for each document. The text is read twice, and of candidates once more.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.context import Context
from stages.core.errors import InputError
from stages.dedup import bloom_pass, lsh, suffix_array, verification
from stages.dedup.bloom_pass import Kept
from stages.dedup.funnel import Funnel, write_kept
from stages.dedup.limits import dealt, documents_problem
from stages.dedup.spec import Dedup, DedupConfig, Recipe
from stages.dedup.union_find import around, clusters, splice, unite
from stages.lib.data.workers import Pool, Result
from stages.lib.formats.corpus import Shard, adopt_parts, commonest, renumbered, shards_of

EXAMPLE_CLUSTERS = 5
RECORD_BYTES = 32
"""Memory of one LSH record while its partition is sorted: key, document, order, and the sorted key and document."""
PAIRS_AT_ONCE = 1 << 20
"""Pairs that are read together."""
PAIRS_PER_TASK = 1 << 17
"""Candidate pairs that one task verifies: about a shard's worth of work."""


def run(ctx: Context[DedupConfig]) -> None:
    """Write the documents that remain; raise InputError when none does."""
    recipe = ctx.config.resolved()
    work = shards_of([source.entries() for source in ctx.inputs("sources")])
    if not work:
        raise InputError(f"{ctx.node}: the corpus is empty: its sources hold no document")
    parts = [renumbered(part) for part in dealt(work, ctx.config.partitions)]
    largest = max(sum(shard.rows for shard in part) for part in parts)
    if problem := documents_problem(largest * len(parts), len(parts)):
        raise InputError(problem.line(ctx.node))
    funnel, linked = Funnel(), _Clusters()
    with Pool.of(ctx, Dedup.resources(ctx.config), folders=True) as pool:
        left = []
        for number, part in enumerate(parts):
            pool.prefix = f"p{number:04d}-" if len(parts) > 1 else ""
            left.append(_deduplicate(ctx, pool, recipe, part, funnel, linked))
        pool.prefix = ""
        if not funnel.rows["out"]["documents"] and recipe.min_characters:
            raise InputError(
                f"{ctx.node}: nothing is left of {funnel.rows['in']['documents']} documents: all are shorter than"
                f" {recipe.min_characters} characters"
            )
        if recipe.bloom:
            last = bloom_pass.filter_documents(pool, left, ctx.config.bloom_memory_gib, ctx.node, funnel, ctx.progress)
        else:
            last = [entry for part in left for kept in part for entry in kept.parts]
        adopt_parts(ctx, "documents", last)
    _tell(ctx, funnel, linked)


@dataclass
class _Clusters:
    """What is told of the clusters of all partitions."""

    sizes: Counter[int] = field(default_factory=Counter)
    examples: list[list[str]] = field(default_factory=list)
    pairs: Counter[str] = field(default_factory=Counter)

    def add(self, groups: np.ndarray, labels: dict[int, str]) -> None:
        """The clusters of one partition, and how their examples are called."""
        if not len(groups):
            return
        self.sizes.update(np.unique(groups[:, 0], return_counts=True)[1].tolist())
        shown = _examples(groups)
        of = dict(groups[np.isin(groups[:, 1], shown)][:, ::-1].tolist())
        clusters_ = [[labels[d] for d in shown if of[d] == first] for first in sorted(set(of.values()))]
        self.examples += clusters_[: EXAMPLE_CLUSTERS - len(self.examples)]


def _deduplicate(
    ctx: Context[DedupConfig], pool: Pool, recipe: Recipe, work: list[Shard], funnel: Funnel, linked: _Clusters
) -> list[Kept]:
    """All steps but the Bloom filter, one after another, for one partition; what is left."""
    total = sum(shard.rows for shard in work)
    fate, groups = np.zeros(total, np.int8), np.empty((0, 2), np.uint32)
    if recipe.exact or recipe.bands or recipe.min_characters:
        signed = _sign(ctx, pool, recipe, work)
        fate = _exact(ctx, pool, signed, recipe, total)
        if recipe.bands and (fate == lsh.KEPT).any():
            groups = _near(ctx, pool, signed, recipe, work, fate, linked.pairs)
    np.save(pool.folder / "fate.npy", fate)
    here = Funnel()
    examples = _examples(groups)
    tasks = [
        {
            "shard": asdict(s),
            "fates": str(pool.folder / "fate.npy"),
            "examples": [e for e in examples if s.start <= e < s.start + s.rows],
        }
        for s in work
    ]
    results = pool.map("keep", write_kept, tasks, ctx.progress)
    labels: dict[int, str] = {}
    for result in results:
        here.add(result.value["funnel"])
        labels.update({int(document): label for document, label in result.value["labels"].items()})
    linked.add(groups, labels)
    if recipe.substring_bytes:
        results = suffix_array.cut(
            pool,
            [result.folder for result in results],
            recipe.substring_bytes,
            ctx.config.substring_megabytes << 20,
            here,
            ctx.progress,
        )
    funnel.add(here.value())
    return [Kept(result.files, result.value["funnel"]["rows"]["out"]["bytes"]) for result in results]


def _sign(ctx: Context[DedupConfig], pool: Pool, recipe: Recipe, work: list[Shard]) -> list[Result]:
    bands, rows = max(1, recipe.bands), recipe.rows if recipe.bands else 1
    records = sum(shard.rows for shard in work) * bands
    partitions = 1 << max(0, math.ceil(math.log2(max(1.0, records * RECORD_BYTES * 4 / (ctx.config.memory_mib << 20)))))
    signer = [recipe.shingle, recipe.width, recipe.permutations if recipe.bands else 1, bands, rows, ctx.config.seed]
    common = {
        "signer": signer,
        "shortest": recipe.min_characters,
        "short_filter": recipe.short_filter,
        "min_tokens": recipe.min_tokens,
        "partitions": partitions,
    }
    return pool.map("sign", lsh.sign, [{"shard": asdict(shard), **common} for shard in work], ctx.progress)


def _exact(ctx: Context[DedupConfig], pool: Pool, signed: list[Result], recipe: Recipe, total: int) -> np.ndarray:
    """The fate of every document after the short filter and the exact duplicates: [documents], int8."""
    fate = np.concatenate([np.fromfile(result.folder / "fates", np.int8) for result in signed])
    if recipe.exact:
        runs = [str(result.folder) for result in signed]
        tasks = [{"partition": p, "runs": runs} for p in range(signed[0].value["partitions"])]
        for result in pool.map("exact", lsh.exact, tasks, ctx.progress):
            fate[np.fromfile(result.folder / "documents", np.uint32)] = lsh.EXACT
    return fate


def _near(
    ctx: Context[DedupConfig],
    pool: Pool,
    signed: list[Result],
    recipe: Recipe,
    work: list[Shard],
    fate: np.ndarray,
    pairs: Counter[str],
) -> np.ndarray:
    """Find the clusters of near duplicates, write NEAR into `fate`; rows (first document, document) of all of them,
    sorted.
    """
    fates = pool.folder / "fate-exact.npy"
    np.save(fates, fate)
    runs = [str(result.folder) for result in signed]
    partitions = range(signed[0].value["partitions"])
    tasks = [{"partition": p, "runs": runs, "fates": str(fates), "star": not recipe.verify} for p in partitions]
    files = [str(result.folder / "pairs") for result in pool.map("pair", lsh.pair, tasks, ctx.progress)]
    order = _neighbours(files, len(fate))
    spills: dict[str, Any] = {}
    if len(order) and (recipe.verify or recipe.extremes):
        spills = _spill(ctx, pool, recipe, work, order, len(fate))
    if recipe.verify:
        groups = _verified(ctx, pool, files, order, spills, len(fate), pairs)
    else:
        groups = _joined(files, len(fate))
    if not recipe.extremes:
        fate[groups[groups[:, 0] != groups[:, 1], 1]] = lsh.NEAR
    elif len(groups):
        for result in _extremes(ctx, pool, groups, spills):
            fate[np.fromfile(result.folder / "gone", np.uint32)] = lsh.NEAR
    return groups


def _pairs(files: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of all files, some at a time."""
    for path in map(Path, files):
        for start in range(0, path.stat().st_size // 8, PAIRS_AT_ONCE):
            found = np.fromfile(path, np.uint64, PAIRS_AT_ONCE, offset=8 * start)
            yield (found >> np.uint64(32)).astype(np.uint32), (found & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _joined(files: Iterable[str], documents: int) -> np.ndarray:
    """The clusters that the pairs of all files connect, see `clusters`."""
    parent = np.arange(documents, dtype=np.uint32)
    for firsts, seconds in _pairs(files):
        unite(parent, firsts, seconds)
    return clusters(parent)


def _neighbours(files: Iterable[str], documents: int) -> np.ndarray:
    """The documents of all pairs, those that have much in common close together: uint32."""
    parent, following = np.arange(documents, dtype=np.uint32), np.arange(documents, dtype=np.uint32)
    for firsts, seconds in _pairs(files):
        splice(parent, following, firsts, seconds)
    return around(parent, following)


def _verified(
    ctx: Context[DedupConfig],
    pool: Pool,
    files: list[str],
    order: np.ndarray,
    spills: dict[str, Any],
    documents: int,
    pairs: Counter[str],
) -> np.ndarray:
    """The clusters of the pairs that reach the threshold. `order`: the candidates, see `_neighbours`."""
    ranks = np.zeros(documents, np.uint32)
    ranks[order] = np.arange(len(order), dtype=np.uint32)
    np.save(pool.folder / "order.npy", order)
    np.save(pool.folder / "ranks.npy", ranks)
    ranked = pool.map(
        "rank", lsh.rank, [{"pairs": f, "ranks": str(pool.folder / "ranks.npy")} for f in files], ctx.progress
    )
    files = [str(result.folder / "pairs") for result in ranked]
    bounds = lsh.ranges([Path(f) for f in files], max(1, (ctx.config.memory_mib << 20) // RECORD_BYTES))
    spans = [{"low": low, "high": high, "files": files} for low, high in itertools.pairwise(bounds)]
    merged = pool.map("merge", lsh.merge, spans, ctx.progress)
    tasks = [
        {
            "pairs": str(r.folder / "pairs"),
            "low": low,
            "high": min(low + PAIRS_PER_TASK, r.value),
            "order": str(pool.folder / "order.npy"),
            **spills,
        }
        for r in merged
        for low in range(0, r.value, PAIRS_PER_TASK)
    ]
    results = pool.map("verify", verification.verify, tasks, ctx.progress)
    pairs.update(candidate_pairs=sum(r.value for r in merged), verified_pairs=sum(r.value["edges"] for r in results))
    return _joined([str(result.folder / "edges") for result in results], documents)


def _spill(
    ctx: Context[DedupConfig], pool: Pool, recipe: Recipe, work: list[Shard], candidates: np.ndarray, total: int
) -> dict[str, Any]:
    """Bring the texts of all candidates together; what the tasks that read them are told."""
    mask = np.zeros(total, bool)
    mask[candidates] = True
    np.save(pool.folder / "candidates.npy", mask)
    tasks = [{"shard": asdict(shard), "candidates": str(pool.folder / "candidates.npy")} for shard in work]
    spilled = pool.map("spill", verification.spill, tasks, ctx.progress)
    return {
        "spilled": {
            "folders": [str(result.folder) for result in spilled],
            "starts": [shard.start for shard in work],
        },
        "rule": {"kind": recipe.shingle, "width": recipe.width, "threshold": recipe.threshold},
    }


def _extremes(ctx: Context[DedupConfig], pool: Pool, groups: np.ndarray, spills: dict[str, Any]) -> list[Result]:
    """Of every cluster the documents to keep, some thousand documents a task, clusters whole."""
    path = pool.folder / "groups.bin"
    groups.tofile(path)
    starts = np.flatnonzero(np.concatenate([[True], groups[1:, 0] != groups[:-1, 0]]))
    cuts = [int(starts[0])]
    for start in starts.tolist():
        if start - cuts[-1] >= 1 << 13:
            cuts.append(start)
    tasks = [
        {"members": str(path), "low": a, "high": b, **spills}
        for a, b in zip(cuts, [*cuts[1:], len(groups)], strict=True)
    ]
    return pool.map("extremes", verification.extremes, tasks, ctx.progress)


def _examples(groups: np.ndarray) -> list[int]:
    """Up to four documents of each of the first clusters."""
    if not len(groups):
        return []
    firsts = np.unique(groups[:, 0])[:EXAMPLE_CLUSTERS]
    return [int(d) for first in firsts for d in groups[groups[:, 0] == first, 1][:4]]


def _tell(ctx: Context[DedupConfig], funnel: Funnel, linked: _Clusters) -> None:
    """The statistics."""
    out = funnel.rows["out"]
    meta = {"documents": out["documents"], "text_bytes": out["bytes"], "per_license": commonest([funnel.licenses])}
    ctx.describe("documents", meta=meta)
    ctx.stat(
        recipe=ctx.config.recipe,
        funnel=funnel.rows,
        keep_fraction_bytes=round(out["bytes"] / max(1, funnel.rows["in"]["bytes"]), 4),
        per_source=dict(sorted(funnel.sources.items())),
        lengths=funnel.histogram(),
        clusters=sum(linked.sizes.values()),
        cluster_sizes={str(size): linked.sizes[size] for size in sorted(linked.sizes)},
        example_clusters=linked.examples,
        documents=out["documents"],
        text_bytes=out["bytes"],
        **linked.pairs,
    )
