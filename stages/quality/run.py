"""Run `quality`: train on reference against web, score everything, keep the best.

One thread: fastText with more is not reproducible (facts/data.md 6), and with one only when new memory is zero (see
`zeroed_memory`). Documents that trained as negatives are scored like all others, as upstream does.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fasttext
import numpy as np

from stages.core.contracts import ConfigError, Context, InputError
from stages.documents import DocumentWriter, count, read_documents
from stages.quality.spec import QualityConfig

POSITIVE, NEGATIVE = "__label__hq", "__label__cc"
"""DCLM's labels."""
BATCH = 512


def line(text: str) -> str:
    """A document on one line, as DCLM gives it to fastText; words that fastText would read as labels lose their mark."""
    return " ".join(text.strip().splitlines()).replace("__label__", "label")


M_PERTURB = -6
"""glibc's mallopt option: fill new memory with the complement of the given byte (malloc.h)."""


@contextmanager
def zeroed_memory(ctx: Context[QualityConfig]) -> Iterator[None]:
    """While this lasts, `malloc` hands out zeros.

    fastText 0.9.2 with one thread draws random values for the first tenth of its input matrix and leaves the rest as the
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
    documents, positives = ctx.input("documents"), ctx.input("positives")
    total = count(documents.path)
    if not total or not count(positives.path):
        raise InputError(f"{ctx.node}: no documents from {(positives if total else documents).node}: nothing to score or to learn from")
    model, test = _train(ctx)
    values = np.empty(total, np.float64)
    done = 0
    batch: list[str] = []
    for document in read_documents(documents.path):
        batch.append(document["text"])
        if len(batch) == BATCH:
            values[done : done + len(batch)] = scores(model, batch)
            done += len(batch)
            batch = []
            ctx.progress(done, total, "documents")
    if batch:
        values[done:] = scores(model, batch)
    keep = _chosen(ctx, values)
    with DocumentWriter(ctx.output("kept")) as writer:
        for document, chosen in zip(read_documents(documents.path), keep, strict=True):
            if chosen:
                writer.add(**document)
    histogram, edges = np.histogram(values, bins=10, range=(0.0, 1.0 + 1e-4))
    ctx.describe("kept", meta={"documents": writer.documents, "text_bytes": writer.text_bytes})
    ctx.stat(
        scored=total,
        documents=writer.documents,
        text_bytes=writer.text_bytes,
        threshold=float(values[keep].min()),
        histogram=[{"from": round(float(e), 2), "documents": int(n)} for e, n in zip(edges, histogram, strict=False)],
        **test,
    )


def _chosen(ctx: Context[QualityConfig], values: np.ndarray) -> np.ndarray:
    """Which documents stay: [documents], bool. Ties go to the earlier document."""
    config = ctx.config
    keep = np.zeros(len(values), bool)
    if config.threshold is not None:
        keep = values > config.threshold
    else:
        keep[np.argsort(-values, kind="stable")[: math.floor(len(values) * config.keep_fraction + 1e-9)]] = True
    if not keep.any():
        rule = f"threshold {config.threshold}" if config.threshold is not None else f"keep_fraction {config.keep_fraction}"
        raise InputError(f"{ctx.node}: {rule} keeps none of {len(values)} documents: lower the bar, or bring more documents")
    return keep


def _train(ctx: Context[QualityConfig]) -> tuple[Any, dict[str, float]]:
    """Train on equal numbers of both labels, and test on the part held out."""
    config = ctx.config
    rng = np.random.default_rng(config.seed)
    sources = {POSITIVE: ctx.input("positives").path, NEGATIVE: ctx.input("documents").path}
    size = min(config.train_documents, *(count(path) for path in sources.values()))
    held = max(1, int(size * config.holdout))
    train: list[str] = []
    test: list[tuple[str, str]] = []
    for label, path in sources.items():
        chosen = rng.permutation(count(path))[:size]
        held_out, taken = set(chosen[:held].tolist()), set(chosen[held:].tolist())
        for index, document in enumerate(read_documents(path)):
            if index in held_out:
                test.append((label, document["text"]))
            elif index in taken:
                train.append(f"{label} {line(document['text'])}\n")
    if len(train) < 2:
        raise InputError(f"{ctx.node}: {size} documents of each label are too few to train a classifier on")
    order = rng.permutation(len(train))
    file = Path(ctx.scratch) / "train.txt"
    file.write_text("".join(train[i] for i in order), encoding="utf-8", errors="replace")
    model = _fit(ctx, file)
    right = (scores(model, [text for _, text in test]) > 0.5) == np.array([label == POSITIVE for label, _ in test])
    return model, {"train_documents": len(train), "test_documents": len(test), "test_accuracy": round(float(right.mean()), 4)}


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
        raise ConfigError(f"{ctx.node}.learning_rate = {config.learning_rate}: the classifier diverged; lower it") from error
