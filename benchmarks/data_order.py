"""Loss curves under the order that training takes its windows in, beside those under a full permutation.

    python -m benchmarks.data_order [--seeds 5] [--steps 200]

`pretrain` itself trains a small model on the bytes of Python's own sources, from the same first weights in both orders;
windows lie on disk in random order, as `tokenize` writes them. A third order shows what the comparison would find: the
same blocks over windows that nobody shuffled. What is compared is paired by seed: the held-out loss at the end, and the
training's own mean loss over its last third.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from stages.core.artifacts import Tokenizer, TokenShards
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats import vocabulary
from stages.lib.formats.shards import ShardWriter
from stages.lib.modeling.shape import ModelShape
from stages.lib.training.data_order import DataOrder
from stages.pretrain.run import run
from stages.pretrain.spec import PretrainConfig

BATCH, LENGTH, WINDOWS, HELDOUT, EVERY = 8, 64, 1 << 15, 256, 50
VOCABULARY = 3 + 256
SHAPE = ModelShape(layers=2, hidden=64, intermediate=176, heads=4, kv_heads=2, head_dim=16, max_positions=LENGTH)


class FullPermutation(DataOrder):
    """Each epoch a permutation of its own."""

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(np.asarray(positions, np.int64), self.windows)
        return np.array([_permutation(self.windows, self.seed, int(e))[p] for e, p in zip(epochs, places, strict=True)])


@lru_cache(4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def text_windows(count: int) -> np.ndarray:
    """Windows of the bytes of Python's sources, in the order of the files; each file ends with </s>."""
    ids: list[np.ndarray] = []
    total = 0
    for path in sorted(Path(os.__file__).parent.glob("*.py")) + sorted(Path(os.__file__).parent.glob("*/*.py")):
        if "site-packages" in path.parts:
            continue
        ids += [np.frombuffer(path.read_bytes(), np.uint8).astype(np.int64) + 3, np.array([vocabulary.EOS_ID])]
        total += len(ids[-2]) + 1
        if total >= count * LENGTH:
            return np.concatenate(ids)[: count * LENGTH].reshape(count, LENGTH)
    raise SystemExit(f"Python's sources here have {total:,} bytes, {count * LENGTH:,} are needed")


def written(folder: Path, train: np.ndarray, heldout: np.ndarray) -> dict[str, Any]:
    """The inputs of `pretrain`."""
    shards, tokenizer = folder / "shards", folder / "tokenizer"
    (shards / "heldout").mkdir(parents=True)
    tokenizer.mkdir()
    for place, windows in ((shards, train), (shards / "heldout", heldout)):
        with ShardWriter(place, LENGTH, VOCABULARY, vocabulary.EOS_ID, "digest") as writer:
            writer.add(windows)
    (tokenizer / "tokenizer.json").write_text("{}")
    facets = {"tokenizer_digest": "digest", "vocab_size": VOCABULARY}
    return {
        "tokens": [local_artifact(TokenShards, shards, {**facets, "sequence_length": LENGTH})],
        "tokenizer": [local_artifact(Tokenizer, tokenizer, facets)],
    }


def curve(inputs: dict[str, Any], order: type[DataOrder], seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The losses of all steps, and those of the held-out windows."""
    config = PretrainConfig(
        shape=SHAPE, sequence_length=LENGTH, tokens=steps * BATCH * LENGTH, global_batch_size=BATCH,
        micro_batch_size=BATCH, learning_rate=3e-3, warmup_steps=20, precision="fp32", dropout=0.0,
        eval_windows=HELDOUT, eval_every=steps, checkpoint_every=steps, log_every=1, threads=1, seed=seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, mock.patch("stages.pretrain.data.DataOrder", order):
        run(ctx := LocalContext(Path(folder), config, inputs))
    return (
        np.array([row["loss"] for row in ctx.metrics]),
        np.array([row["val_loss"] for row in ctx.metrics if "val_loss" in row]),
    )


def paired(name: str, ours: np.ndarray, theirs: np.ndarray) -> str:
    """A row: the mean difference over seeds beside its standard error, and how far seeds are apart."""
    difference = ours - theirs
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    means = f"{ours.mean():.4f} | {theirs.mean():.4f}"
    return f"| {name} | {means} | {difference.mean():+.4f} | {error:.4f} | {theirs.std(ddof=1):.4f} |"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    windows = text_windows(WINDOWS + HELDOUT)
    shuffled = np.random.default_rng(0).permutation(windows)
    chosen = np.random.default_rng(1).permutation(len(windows))
    in_order = windows[np.sort(chosen[HELDOUT:])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random = written(folder / "random", shuffled[HELDOUT:], shuffled[:HELDOUT])
        unshuffled = written(folder / "unshuffled", in_order, windows[chosen[:HELDOUT]])
        curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        orders: list[tuple[str, dict[str, Any], type[DataOrder]]] = [
            ("full permutation", random, FullPermutation),
            ("blocks", random, DataOrder),
            ("blocks of unshuffled windows", unshuffled, DataOrder),
        ]
        for seed in range(options.seeds):
            for order, inputs, kind in orders:
                curves.setdefault(order, []).append(curve(inputs, kind, seed, options.steps))
                losses, heldout = curves[order][-1]
                print(
                    f"seed {seed}, {order}: {losses[-EVERY:].mean():.4f}, held out {heldout[-1]:.4f}", file=sys.stderr
                )
    print(f"{options.seeds} seeds, {options.steps} steps of {BATCH} x {LENGTH} bytes\n")
    print("| step | " + " | ".join(order for order, _, _ in orders) + " |")
    print("| ---: |" + " ---: |" * len(orders))
    for at in range(EVERY, options.steps + 1, EVERY):
        means = [np.mean([losses[at - EVERY : at].mean() for losses, _ in curves[order]]) for order, _, _ in orders]
        print(f"| {at - EVERY + 1} to {at} | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")
    print("\n| what | this order | full permutation | difference | its standard error | seeds apart (sd) |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    measures: list[tuple[str, Callable[[tuple[np.ndarray, np.ndarray]], float]]] = [
        ("held-out loss at the end", lambda one: float(one[1][-1])),
        ("loss, last third", lambda one: float(one[0][-(options.steps // 3) :].mean())),
        ("loss, step to step (sd of differences)", lambda one: float(np.diff(one[0][options.steps // 3 :]).std())),
    ]
    for order in ("blocks", "blocks of unshuffled windows"):
        for what, of in measures:
            ours = np.array([of(one) for one in curves[order]])
            theirs = np.array([of(one) for one in curves["full permutation"]])
            print(paired(f"{order}: {what}", ours, theirs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
