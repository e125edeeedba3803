"""Run `dedup`: sign every document, find and verify candidates, keep one of each cluster, then the Bloom filter.

Two passes over the text; what stays in memory is the signatures, and the sets of documents that are candidates.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from stages.core.contracts import Context, InputError
from stages.dedup.bloom import BloomDedup
from stages.dedup.minhash import candidates, clusters, keep_extremes, keep_first, sign
from stages.dedup.shingles import character_count, jaccard, shingles
from stages.dedup.spec import RECIPES, DedupConfig
from stages.documents import DocumentWriter, read_documents

EXAMPLE_CLUSTERS = 5


class Funnel:
    """Documents and bytes by what became of them."""

    def __init__(self) -> None:
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def count(self, reason: str, text: str) -> None:
        """Add one document."""
        self.documents[reason] += 1
        self.bytes[reason] += len(text.encode("utf-8", "surrogatepass"))

    def row(self) -> dict[str, dict[str, int]]:
        """As JSON values."""
        return {reason: {"documents": self.documents[reason], "bytes": self.bytes[reason]} for reason in self.documents}


def run(ctx: Context[DedupConfig]) -> None:
    """Write the documents that remain; raise InputError when none does."""
    config, recipe = ctx.config, RECIPES[ctx.config.recipe]
    threshold = config.threshold if config.threshold is not None else recipe.threshold
    funnel = Funnel()
    fate, sets = _first_pass(ctx, funnel)
    members = np.flatnonzero(fate == 0)
    signatures = sign(sets, recipe.permutations, config.seed)
    pairs = candidates(signatures, config.bands or recipe.bands, config.rows or recipe.rows)
    ctx.log(f"{len(members)} documents signed, {len(pairs)} candidate pairs")
    wanted = set(np.unique(pairs).tolist())
    exact = {i: shingles(recipe.shingle, t, recipe.width) for i, t in enumerate(_texts(ctx, members)) if i in wanted}
    if config.verify:
        similar = [jaccard(exact[a], exact[b]) >= threshold for a, b in pairs.tolist()]
        pairs = pairs[np.array(similar, bool)] if len(pairs) else pairs
    groups = clusters(len(members), pairs)
    for group in groups:
        if recipe.shingle == "token set":
            kept = keep_extremes(group, lambda a, b: jaccard(exact[a], exact[b]), threshold)
        else:
            kept = keep_first(group)
        for member in set(group) - set(kept):
            fate[members[member]] = 1
    _second_pass(ctx, funnel, fate, members, groups)


def _first_pass(ctx: Context[DedupConfig], funnel: Funnel) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Short and exact duplicates; the fate of each document (0 kept, 1 near, 2 short, 3 exact), and the others' sets."""
    config, recipe = ctx.config, RECIPES[ctx.config.recipe]
    shortest = config.min_characters if config.min_characters is not None else recipe.min_characters
    seen: set[bytes] = set()
    fate: list[int] = []
    for _, text in _documents(ctx):
        funnel.count("in", text)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
        if shortest and character_count(text, config.short_filter) < shortest:
            fate.append(2)
        elif digest in seen:
            fate.append(3)
        else:
            seen.add(digest)
            fate.append(0)
    if not fate:
        raise InputError(f"{ctx.node}: the corpus is empty: its sources hold no document")
    fates = np.array(fate, np.int8)
    kept = np.flatnonzero(fates == 0)
    if not len(kept):
        raise InputError(f"{ctx.node}: nothing is left of {len(fates)} documents: all are shorter than {shortest} characters")

    def sets() -> Iterator[np.ndarray]:
        for done, text in enumerate(_texts(ctx, kept)):
            found = shingles(recipe.shingle, text, recipe.width)
            # a file of fewer tokens than the recipe asks for takes no part: its own digest stands for it
            yield found if len(found) >= recipe.min_tokens else np.array([done + (1 << 40)], np.uint64)
            ctx.progress(done, len(kept), "documents")

    return fates, sets()


def _second_pass(
    ctx: Context[DedupConfig], funnel: Funnel, fate: np.ndarray, members: np.ndarray, groups: list[list[int]]
) -> None:
    """Write what remains, in input order, and the statistics."""
    recipe = RECIPES[ctx.config.recipe]
    bloom = BloomDedup(expected=funnel.bytes["in"] // 6) if recipe.bloom else None  # about one word in six bytes
    per_source: Counter[str] = Counter()
    ids: dict[int, str] = {}
    example_rows = {int(members[m]) for group in groups[:EXAMPLE_CLUSTERS] for m in group}
    reasons = {1: "near duplicate", 2: "short", 3: "exact duplicate"}
    with DocumentWriter(ctx.output("documents")) as writer:
        for index, (document, text) in enumerate(_documents(ctx)):
            if index in example_rows:
                ids[index] = document["url"] or document["id"]
            if fate[index]:
                funnel.count(reasons[int(fate[index])], text)
                continue
            left = bloom.filter(text) if bloom else text
            if left is None or not left.strip():
                funnel.count("seen before (Bloom filter)", text)
                continue
            if len(left) < len(text):
                cut = len(text.encode("utf-8", "surrogatepass")) - len(left.encode("utf-8", "surrogatepass"))
                funnel.bytes["paragraphs seen before"] += cut
                funnel.documents["paragraphs seen before"] += 1
            writer.add(document["id"], left, document["source"], document["url"], document["license"])
            funnel.count("out", left)
            per_source[document["source"]] += 1
    sizes = Counter(len(group) for group in groups)
    ctx.describe("documents", meta={"documents": writer.documents, "text_bytes": writer.text_bytes})
    ctx.stat(
        recipe=ctx.config.recipe,
        funnel=funnel.row(),
        keep_fraction_bytes=round(writer.text_bytes / max(1, funnel.bytes["in"]), 4),
        per_source=dict(sorted(per_source.items())),
        clusters=len(groups),
        cluster_sizes={str(size): sizes[size] for size in sorted(sizes)},
        example_clusters=[[ids[int(members[m])] for m in group[:4]] for group in groups[:EXAMPLE_CLUSTERS]],
        documents=writer.documents,
        text_bytes=writer.text_bytes,
    )


def _documents(ctx: Context[DedupConfig]) -> Iterator[tuple[dict[str, str], str]]:
    for source in ctx.inputs("sources"):
        for document in read_documents(source.path):
            yield document, document["text"]


def _texts(ctx: Context[DedupConfig], rows: np.ndarray) -> Iterator[str]:
    """The texts of the given rows (ascending), streamed."""
    wanted = iter(rows.tolist())
    nxt = next(wanted, None)
    for index, (_, text) in enumerate(_documents(ctx)):
        if index == nxt:
            yield text
            nxt = next(wanted, None)
