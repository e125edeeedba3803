"""Run `quality`: train on reference against web, score everything, keep the best.

One thread: fastText with more is not reproducible, and with one only when new memory is zero (see `zeroed_memory`).
Documents that trained as negatives are scored like all others, as upstream does. Scoring runs by shard, with the
collapsed classifier (`fasttext_scorer.py`); the share of the best is exact over all of them (`selection.py`).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fasttext
import numpy as np

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.core.preflight import require_digest
from stages.lib.data.workers import Pool, Result
from stages.lib.formats.corpus import Shard, gather_parts, read_shard, shards
from stages.lib.formats.documents import count, read_documents
from stages.lib.formats.parquet_parts import count_by
from stages.quality import selection
from stages.quality.fasttext_scorer import NEGATIVE, POSITIVE, Scorer, line
from stages.quality.spec import Quality, QualityConfig

BATCH = 512


M_PERTURB = -6
"""glibc's mallopt option: fill new memory with the complement of the given byte (malloc.h)."""


@contextmanager
def zeroed_memory(ctx: Context[QualityConfig]) -> Iterator[None]:
    """While this lasts, `malloc` hands out zeros.

    fastText 0.9.2 with one thread draws random values for the first tenth of its input matrix and leaves the rest as
    the
    allocator gives it: zeros in a fresh process, anything later. Then training differs from run to run, or ends in NaN.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        ctx.log("this C library has no mallopt: the classifier may differ from one training to the next", "warning")
        yield
        return
    mallopt(M_PERTURB, 255)
    try:
        yield
    finally:
        mallopt(M_PERTURB, 0)


def scores(model: Any, texts: list[str]) -> np.ndarray:
    """Probability of the positive label for each text. Lists only: fastText's single-string call breaks on numpy 2."""
    labels, probabilities = model.predict([line(text) for text in texts])
    pairs = zip(labels, probabilities, strict=True)
    return np.array([p[0] if label[0] == POSITIVE else 1 - p[0] for label, p in pairs], np.float64)


def run(ctx: Context[QualityConfig]) -> None:
    """Write the kept documents, best share of them, in input order."""
    documents = ctx.input("documents")
    total = count(documents.path)
    for artifact in [documents, *ctx.inputs("positives")]:
        if not count(artifact.path):
            raise InputError(f"{ctx.node}: no documents from {artifact.node}: nothing to score or to learn from")
    work = shards([Path(documents.path)])
    with Pool.of(ctx, Quality.resources(ctx.config), folders=True) as pool:
        scored, test = _score(ctx, pool, work)
        files = [result.folder / "scores" for result in scored]
        tasks = [
            {"shard": asdict(shard), "chosen": _write_mask(pool.folder, number, mask)}
            for number, (shard, mask) in enumerate(zip(work, _chosen(ctx, files), strict=True))
        ]
        results = pool.map("keep", selection.keep, tasks, ctx.progress)
        gather_parts([result.folder for result in results], Path(ctx.output("kept")))
        lowest = min(
            float(np.fromfile(f, np.float64)[np.load(t["chosen"])].min(initial=2.0))
            for f, t in zip(files, tasks, strict=True)
        )
    left, size = (sum(result.value[name] for result in results) for name in ("documents", "bytes"))
    histogram = np.sum([result.value for result in scored], axis=0)
    edges = np.linspace(0.0, 1.0, 11)
    shares = {f"per_{column}": count_by(Path(ctx.output("kept")), column) for column in ("source", "license")}
    ctx.describe("kept", meta={"documents": left, "text_bytes": size, **shares})
    ctx.stat(
        scored=total,
        documents=left,
        text_bytes=size,
        threshold=lowest,
        histogram=[{"from": round(float(e), 2), "documents": int(n)} for e, n in zip(edges, histogram, strict=False)],
        **test,
    )


def _score(ctx: Context[QualityConfig], pool: Pool, work: list[Shard]) -> tuple[list[Result], dict[str, Any]]:
    """Score every shard: by the collapsed classifier, or by fastText itself where that does not apply."""
    model, test = _adopt(ctx) if ctx.config.model else _train(ctx)
    scorer = Scorer.of(model)
    if scorer is None:
        ctx.log("this classifier cannot be collapsed: fastText scores the documents itself, on one core", "warning")
        return [_score_plainly(pool.folder / "plain" / f"{n:06d}", shard, model) for n, shard in enumerate(work)], test
    tables = pool.folder / "tables"
    tables.mkdir(exist_ok=True)
    scorer.save(tables)
    del model
    tasks = [{"shard": asdict(shard), "tables": str(tables), "ngrams": scorer.ngrams} for shard in work]
    return pool.map("score", selection.score, tasks, ctx.progress), test


def _score_plainly(folder: Path, shard: Shard, model: Any) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    batches = read_shard(shard, columns=["text"], rows=BATCH)
    found = np.concatenate([scores(model, batch.column("text").to_pylist()) for batch in batches])
    return Result(selection.write_scores(folder, found), (), folder)


def _write_mask(folder: Path, number: int, mask: np.ndarray) -> str:
    path = folder / f"chosen-{number:06d}.npy"
    np.save(path, mask)
    return str(path)


def _chosen(ctx: Context[QualityConfig], files: list[Path]) -> Iterator[np.ndarray]:
    """Which documents of each shard stay: [documents], bool. Ties go to the earlier document."""
    config = ctx.config
    total = sum(path.stat().st_size // 8 for path in files)
    if config.threshold is not None:
        left = sum(int((np.fromfile(path, np.float64) > config.threshold).sum()) for path in files)
    else:
        left = math.floor(total * config.keep_fraction + 1e-9)
    if not left:
        rule = (
            f"threshold {config.threshold}" if config.threshold is not None else f"keep_fraction {config.keep_fraction}"
        )
        raise InputError(f"{ctx.node}: {rule} keeps none of {total} documents: lower the bar, or bring more documents")
    if config.threshold is not None:
        return (np.fromfile(path, np.float64) > config.threshold for path in files)
    return selection.best(files, left)


def _adopt(ctx: Context[QualityConfig]) -> tuple[Any, dict[str, Any]]:
    """Load a trained classifier."""
    path = Path(str(ctx.config.model))
    if not path.is_file():
        raise ConfigError(f"{ctx.node}.model = {path}: no such file")
    require_digest(f"{ctx.node}.model", path, ctx.config.model_sha256)
    try:
        model = fasttext.load_model(str(path))
    except ValueError as error:
        raise ConfigError(f"{ctx.node}.model = {path}: no fastText model: {error}") from error
    labels = [str(label) for label in model.get_labels()]
    if sorted(labels) != sorted((POSITIVE, NEGATIVE)):
        raise ConfigError(
            f"{ctx.node}.model = {path}: its labels are {', '.join(labels)}; {POSITIVE} and {NEGATIVE} are needed"
        )
    return model, {"classifier": path.name}


def _train(ctx: Context[QualityConfig]) -> tuple[Any, dict[str, float]]:
    """Train on equal numbers of both labels, and test on the part held out."""
    config = ctx.config
    rng = np.random.default_rng(config.seed)
    sources = {POSITIVE: ctx.input("positives").path, NEGATIVE: ctx.input("documents").path}
    size = min(config.train_documents, *(count(path) for path in sources.values()))
    held = max(1, int(size * config.holdout))
    test: list[tuple[str, str]] = []
    raw = Path(ctx.scratch) / "unordered.txt"
    places: list[tuple[int, int]] = []  # of each training line: where it lies, and its bytes
    with open(raw, "wb") as out:
        for label, path in sources.items():
            total = count(path)
            chosen = rng.choice(total, size, replace=False)
            held_out, taken = set(chosen[:held].tolist()), set(chosen[held:].tolist())
            for index, document in enumerate(read_documents(path)):
                if index in held_out:
                    test.append((label, document["text"]))
                elif index in taken:
                    data = f"{label} {line(document['text'])}\n".encode("utf-8", "replace")
                    places.append((out.tell(), len(data)))
                    out.write(data)
    if len(places) < 2:
        raise InputError(f"{ctx.node}: {size} documents of each label are too few to train a classifier on")
    file = Path(ctx.scratch) / "train.txt"
    with open(raw, "rb") as source, open(file, "wb") as out:
        for number in rng.permutation(len(places)):
            source.seek(places[number][0])
            out.write(source.read(places[number][1]))
    raw.unlink()
    model = _fit(ctx, file)
    right = (scores(model, [text for _, text in test]) > 0.5) == np.array([label == POSITIVE for label, _ in test])
    return model, {
        "train_documents": len(places),
        "test_documents": len(test),
        "test_accuracy": round(float(right.mean()), 4),
    }


def _fit(ctx: Context[QualityConfig], file: Path) -> Any:
    """Train fastText on a file of labelled lines. Raises ConfigError when it diverges."""
    config = ctx.config
    try:
        with zeroed_memory(ctx):
            return fasttext.train_supervised(
                str(file),
                lr=config.learning_rate,
                dim=config.dim,
                epoch=config.epochs,
                wordNgrams=config.word_ngrams,
                bucket=config.buckets,
                minCount=1,
                thread=1,
                seed=config.seed,
                verbose=0,
            )
    except RuntimeError as error:
        if "NaN" not in str(error):
            raise
        raise ConfigError(
            f"{ctx.node}.learning_rate = {config.learning_rate}: the classifier diverged; lower it"
        ) from error
