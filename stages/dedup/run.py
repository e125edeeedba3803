"""Run `dedup`: sign every document, find and verify candidates, keep one of each cluster; then substrings, then the
Bloom filter.

Every step runs per shard, partition or range through `stages.lib.data.workers`; what is held in memory over the whole
corpus is one byte of fate and eight of cluster for each document. The text is read twice, and of candidates once more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np

from stages.core.context import Context
from stages.core.errors import InputError
from stages.dedup import bloom_pass, suffix_array
from stages.dedup.bloom_pass import Kept
from stages.dedup.duplicates import Search
from stages.dedup.funnel import Funnel, write_kept
from stages.dedup.limits import dealt, documents_problem
from stages.dedup.spec import Dedup, DedupConfig, Recipe
from stages.lib.data import stored_array
from stages.lib.data.workers import Pool, Result
from stages.lib.formats.corpus import Shard, commonest, link_parts, renumbered, shards_of

EXAMPLE_CLUSTERS = 5


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
    with Pool.of(ctx, Dedup.resources(ctx.config)) as pool:
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
        link_parts(ctx, "documents", last)
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
    duplicates = Search(pool, ctx.config, recipe, work, ctx.progress).run()
    groups, fates = duplicates.groups, stored_array.store(pool, "fates", duplicates.fate)
    linked.pairs.update(duplicates.pairs)
    del duplicates
    here = Funnel()
    examples = _examples(groups)
    tasks = [
        {
            "shard": asdict(s),
            "fates": fates.part(s.start, s.start + s.rows),
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
    left = [_kept(result) for result in results]
    if recipe.substring_bytes:
        together = ctx.config.substring_megabytes << 20
        left = [_kept(r) for r in suffix_array.cut(pool, left, recipe.substring_bytes, together, here, ctx.progress)]
    funnel.add(here.value())
    return left


def _kept(result: Result) -> Kept:
    return Kept(result.files, result.value["funnel"]["rows"]["out"]["bytes"])


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
