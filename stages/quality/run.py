"""Run `quality`: train on reference against web, score everything, keep the best.

Everything is done by tasks: row groups all over both corpora are fetched (`training.fetch`), one task trains, and the
shards are scored with the collapsed classifier (`fasttext_scorer.py`); the share of the best is exact over all of them
(`selection.py`). Documents that trained as negatives are scored like all others, as upstream does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fasttext
import numpy as np

from stages.core.artifacts import FileEntry
from stages.core.context import Context, LocalArtifact
from stages.core.errors import InputError
from stages.core.reading import local_file
from stages.lib.data.group_sampling import Group, row_groups, spread
from stages.lib.data.workers import Pool, Result
from stages.lib.formats.corpus import Shard, commonest, link_parts, read_shard, shards_of
from stages.quality import selection, training
from stages.quality.fasttext_scorer import NEGATIVE, POSITIVE, TABLES
from stages.quality.spec import Quality, QualityConfig

BATCH = 512
"""Documents that fastText scores together."""
OVERSAMPLE = 8
"""What is read of a large corpus to train on, in times of the documents chosen: row groups, from which they are drawn.
"""
TASK_GROUPS = 8
"""Row groups that one task fetches: about 128 MB of text."""


def run(ctx: Context[QualityConfig]) -> None:
    """Write the kept documents, best share of them, in input order."""
    documents, config = ctx.input("documents"), ctx.config
    work = shards_of([documents.entries()])
    total = sum(shard.rows for shard in work)
    learned = [(source.node, sum(g.rows for g in row_groups(source.entries()))) for source in ctx.inputs("positives")]
    for node, rows in [(documents.node, total), *learned]:
        if not rows:
            raise InputError(f"{ctx.node}: no documents from {node}: nothing to score or to learn from")
    left = math.floor(total * config.keep_fraction + 1e-9)
    if config.threshold is None and not left:
        raise _keeps_none(ctx, total)
    with Pool.of(ctx, Quality.resources(config)) as pool:
        scored, test = _score(ctx, pool, work)
        scores = [result.file("scores") for result in scored]
        if config.threshold is None:
            edge = selection.cut(pool, scores, [result.file("bins") for result in scored], left)
        else:
            edge = selection.Edge(int(selection.ordered(np.array([config.threshold]))[0]), (0,) * len(work))
        tasks = [
            {"shard": asdict(shard), "scores": entry.value(), "edge": edge.key, "ties": ties}
            for shard, entry, ties in zip(work, scores, edge.ties, strict=True)
        ]
        kept = pool.map("keep", selection.keep, tasks, ctx.progress)
        if not any(result.value["documents"] for result in kept):
            raise _keeps_none(ctx, total)
        link_parts(ctx, "kept", (entry for result in kept if result.value["documents"] for entry in result.files))
    number, size = (sum(result.value[name] for result in kept) for name in ("documents", "bytes"))
    histogram = np.sum([result.value for result in scored], axis=0)
    edges = np.linspace(0.0, 1.0, 11)
    shares = {f"per_{name}": commonest(result.value[name] for result in kept) for name in selection.COLUMNS}
    ctx.describe("kept", meta={"documents": number, "text_bytes": size, **shares})
    ctx.stat(
        scored=total,
        documents=number,
        text_bytes=size,
        threshold=min(result.value["lowest"] for result in kept if result.value["documents"]),
        histogram=[{"from": round(float(e), 2), "documents": int(n)} for e, n in zip(edges, histogram, strict=False)],
        **test,
    )


def _keeps_none(ctx: Context[QualityConfig], total: int) -> InputError:
    config = ctx.config
    rule = f"threshold {config.threshold}" if config.threshold is not None else f"keep_fraction {config.keep_fraction}"
    return InputError(f"{ctx.node}: {rule} keeps none of {total} documents: lower the bar, or bring more documents")


def _score(ctx: Context[QualityConfig], pool: Pool, work: list[Shard]) -> tuple[list[Result], dict[str, Any]]:
    """Score every shard: by the collapsed classifier, or by fastText itself where that does not apply."""
    config = ctx.config
    if config.model:
        tasks = [{"path": config.model, "sha256": config.model_sha256, "node": ctx.node}]
        (classifier,) = pool.map("adopt", training.adopt, tasks)
    else:
        (classifier,) = pool.map("train", training.train, [sample(ctx, pool)])
        if not classifier.value["zeroed"]:
            ctx.log("this C library has no mallopt: the classifier may differ from one training to the next", "warning")
    test = {name: value for name, value in classifier.value.items() if name not in ("zeroed", "ngrams")}
    ngrams = classifier.value["ngrams"]
    if ngrams is None:
        ctx.log("this classifier cannot be collapsed: fastText scores the documents itself, which is slower", "warning")
        model = classifier.file(training.MODEL).value()
        tasks = [{"shard": asdict(shard), "model": model} for shard in work]
        return pool.map("score-plainly", score_plainly, tasks, ctx.progress), test
    tables = [classifier.file(name).value() for name in TABLES]
    tasks = [{"shard": asdict(shard), "tables": tables, "ngrams": ngrams} for shard in work]
    return pool.map("score", selection.score, tasks, ctx.progress), test


def score_plainly(folder: Path, shard: dict[str, Any], model: dict[str, Any]) -> list[int]:
    """A task: score a shard with fastText itself. Returns its histogram in tenths."""
    with local_file(FileEntry.model_validate(model)) as path:
        loaded = fasttext.load_model(str(path))
    batches = read_shard(Shard(**shard), columns=["text"], rows=BATCH)
    parts = [training.scores(loaded, batch.column("text").to_pylist()) for batch in batches]
    return selection.write_scores(folder, np.concatenate(parts))


def sample(ctx: Context[QualityConfig], pool: Pool) -> dict[str, Any]:
    """Fetch equal numbers of documents of both labels; the arguments of the task that trains on them.

    They are drawn from row groups that hold OVERSAMPLE times as many, all over each corpus: uniformly where it has not
    more than that.
    """
    config = ctx.config
    rng = np.random.default_rng(config.seed)
    sources: dict[str, LocalArtifact] = {POSITIVE: ctx.input("positives"), NEGATIVE: ctx.input("documents")}
    groups = {label: row_groups(source.entries()) for label, source in sources.items()}
    size = min(config.train_documents, *(sum(g.rows for g in of_one) for of_one in groups.values()))
    held = max(1, int(size * config.holdout))
    if 2 * (size - held) < 2:
        raise InputError(f"{ctx.node}: {size} documents of each label are too few to train a classifier on")
    tasks, pools = [], []
    for label, everything in groups.items():
        rows = [group.rows for group in everything]
        mine = [everything[n] for n in spread(rows, OVERSAMPLE * size)]
        pools.append(sum(group.rows for group in mine))
        drawn = rng.choice(pools[-1], size, replace=False)
        tasks += _fetches(label, mine, np.sort(drawn[held:]), np.sort(drawn[:held]))
    results = pool.map("fetch", training.fetch, tasks, ctx.progress)
    return {
        "samples": [
            {"label": task["label"], **{name: result.file(name).value() for name in ("lines", "held")}}
            for task, result in zip(tasks, results, strict=True)
        ],
        "order": [*pools, size],
        "options": {
            "lr": config.learning_rate,
            "dim": config.dim,
            "epoch": config.epochs,
            "wordNgrams": config.word_ngrams,
            "bucket": config.buckets,
            "seed": config.seed,
        },
        "node": ctx.node,
    }


def _fetches(label: str, groups: Sequence[Group], train: np.ndarray, test: np.ndarray) -> list[dict[str, Any]]:
    """The tasks that fetch some documents, by their numbers among those of the groups, in order."""
    chosen, start = [], 0
    for group in groups:
        rows = [
            (numbers[np.searchsorted(numbers, start) : np.searchsorted(numbers, start + group.rows)] - start).tolist()
            for numbers in (train, test)
        ]
        start += group.rows
        if rows[0] or rows[1]:
            chosen.append({"part": group.part.value(), "number": group.number, "train": rows[0], "test": rows[1]})
    return [{"label": label, "groups": chosen[n : n + TASK_GROUPS]} for n in range(0, len(chosen), TASK_GROUPS)]
