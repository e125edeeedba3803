"""The classifier as one task: what it learns from is fetched by tasks of their own, a few row groups each.

fastText trains on one thread: with more it is not reproducible, and with one only when new memory is zero (see
`zeroed_memory`).
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa

from stages.core.artifacts import FileEntry
from stages.core.errors import ConfigError
from stages.core.preflight import require_digest
from stages.core.reading import open_file
from stages.lib.data.group_sampling import Group, read_group
from stages.quality.fasttext_scorer import NEGATIVE, POSITIVE, Scorer, line

M_PERTURB = -6
"""glibc's mallopt option: fill new memory with the complement of the given byte (malloc.h)."""
MODEL = "model.bin"


@contextmanager
def zeroed_memory() -> Iterator[bool]:
    """While this lasts, `malloc` hands out zeros; False where the C library cannot do that.

    fastText 0.9.2 with one thread draws random values for the first tenth of its input matrix and leaves the rest as
    the
    allocator gives it: zeros in a fresh process, anything later. Then training differs from run to run, or ends in NaN.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield False
        return
    mallopt(M_PERTURB, 255)
    try:
        yield True
    finally:
        mallopt(M_PERTURB, 0)


def scores(model: Any, texts: list[str]) -> np.ndarray:
    """Probability of the positive label for each text. Lists only: fastText's single-string call breaks on numpy 2."""
    labels, probabilities = model.predict([line(text) for text in texts])
    pairs = zip(labels, probabilities, strict=True)
    return np.array([p[0] if label[0] == POSITIVE else 1 - p[0] for label, p in pairs], np.float64)


# --- tasks ------------------------------------------------------------------------------------------------------------


def fetch(folder: Path, label: str, groups: Sequence[Mapping[str, Any]]) -> Any:
    """A task: documents of some row groups. `lines`: a line for each that trains; `held`: the JSON texts of those that
    test.

    groups: of each its part, its number, and the rows that train and that test, in order.
    """
    counts = {"lines": 0, "held": 0}
    with open(folder / "lines", "wb") as lines, open(folder / "held", "wb") as held:
        for group in groups:
            part = FileEntry.model_validate(group["part"])
            column = read_group(Group(part, group["number"], 0, 0), ["text"]).column("text")
            for text in column.take(pa.array(group["train"], pa.int64())).to_pylist():
                lines.write(f"{label} {line(text)}\n".encode("utf-8", "replace"))
            for text in column.take(pa.array(group["test"], pa.int64())).to_pylist():
                held.write(json.dumps(text).encode() + b"\n")
            counts["lines"] += len(group["train"])
            counts["held"] += len(group["test"])
    return counts


def train(folder: Path, **arguments: Any) -> Any:
    """A task: train the classifier (`fitted`), and leave what scoring needs."""
    model, facts = fitted(folder, **arguments)
    return {**facts, **_save(folder, model)}


def fitted(
    folder: Path,
    samples: Sequence[Mapping[str, Any]],
    order: Sequence[int],
    options: Mapping[str, Any],
    node: str,
) -> tuple[Any, dict[str, Any]]:
    """Train fastText on fetched lines, in the order of a shuffle, and test it on what is held out.

    samples: label, `lines` and `held` of each fetch; order: sizes of the choices whose draws come before that of the
    order (`run.sample`); options: fastText's. Raises ConfigError when it diverges.
    """
    raw, file = folder / "unordered.txt", folder / "train.txt"
    test: list[tuple[str, str]] = []
    with open(raw, "wb") as out:
        for sample in samples:
            with open_file(FileEntry.model_validate(sample["lines"])) as stream:
                while block := stream.read(1 << 24):
                    out.write(block)
            with open_file(FileEntry.model_validate(sample["held"])) as stream:
                test += [(sample["label"], json.loads(row)) for row in stream.read().splitlines()]
    with open(raw, "rb") as source:
        ends = np.cumsum([0, *(len(row) for row in source)])
    rng = np.random.default_rng(options["seed"])
    for size in order[:-1]:
        rng.choice(size, order[-1], replace=False)
    with open(raw, "rb") as source, open(file, "wb") as out:
        for number in rng.permutation(len(ends) - 1).tolist():
            source.seek(int(ends[number]))
            out.write(source.read(int(ends[number + 1] - ends[number])))
    try:
        with zeroed_memory() as zeroed:
            model = fasttext.train_supervised(str(file), minCount=1, thread=1, verbose=0, **options)
    except RuntimeError as error:
        if "NaN" not in str(error):
            raise
        raise ConfigError(f"{node}.learning_rate = {options['lr']}: the classifier diverged; lower it") from error
    finally:
        raw.unlink()
        file.unlink()
    right = (scores(model, [text for _, text in test]) > 0.5) == np.array([label == POSITIVE for label, _ in test])
    return model, {
        "train_documents": len(ends) - 1,
        "test_documents": len(test),
        "test_accuracy": round(float(right.mean()), 4),
        "zeroed": zeroed,
    }


def adopt(folder: Path, path: str, sha256: str | None, node: str) -> Any:
    """A task, on the machine of the driver: a classifier that somebody else trained. Raises ConfigError."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{node}.model = {path}: no such file")
    require_digest(f"{node}.model", file, sha256)
    try:
        model = fasttext.load_model(str(file))
    except ValueError as error:
        raise ConfigError(f"{node}.model = {path}: no fastText model: {error}") from error
    labels = [str(label) for label in model.get_labels()]
    if sorted(labels) != sorted((POSITIVE, NEGATIVE)):
        raise ConfigError(
            f"{node}.model = {path}: its labels are {', '.join(labels)}; {POSITIVE} and {NEGATIVE} are needed"
        )
    return {"classifier": file.name, **_save(folder, model)}


def _save(folder: Path, model: Any) -> dict[str, Any]:
    """Leave what scoring needs: the collapsed classifier, or the model itself where it cannot be collapsed."""
    scorer = Scorer.of(model)
    if scorer is None:
        model.save_model(str(folder / MODEL))
        return {"ngrams": None}
    scorer.save(folder)
    return {"ngrams": scorer.ngrams}
