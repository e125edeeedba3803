"""A learnable language of a few ids, and configurations of `pretrain` small enough to be trained in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.artifacts import Model, OptimizerState, Tokenizer, TokenShards
from stages.core.context import LocalArtifact
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats import vocabulary
from stages.lib.formats.shards import ShardWriter
from stages.lib.modeling.shape import ModelShape
from stages.pretrain.run import run
from stages.pretrain.spec import PretrainConfig
from tests.support.distributed import run_processes

SHAPE = ModelShape(layers=2, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8, window=12, max_positions=64)


VOCABULARY, LENGTH = 400, 16
PHASE = 4
"""Steps of a `phase`."""


def config(**changes: Any) -> PretrainConfig:
    values: dict[str, Any] = {
        "shape": SHAPE,
        "sequence_length": LENGTH,
        "tokens": 12 * 4 * LENGTH,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
        "precision": "fp32",
        "eval_windows": 8,
        "eval_every": 5,
        "checkpoint_every": 4,
        "log_every": 1,
        "compare_every": 1,
        "threads": 1,
    }
    return PretrainConfig(**(values | changes))


def phase(**changes: Any) -> PretrainConfig:
    """Steps over all 30 windows each, at one rate: a phase's data are then those of any other."""
    values: dict[str, Any] = {"tokens": PHASE * 30 * LENGTH, "global_batch_size": 30, "micro_batch_size": 30}
    values |= {"warmup_steps": 0, "min_lr_ratio": 1.0, "dropout": 0.0, "eval_windows": 0, "learning_rate": 1e-3}
    return config(**{**values, **changes})


def handed_on(root: Path) -> dict[str, list[LocalArtifact]]:
    """What the next phase takes from one."""
    given = {"parent": [local_artifact(Model, root / "out/model")]}
    moments = root / "out/moments"
    return given | ({"parent_moments": [local_artifact(OptimizerState, moments)]} if moments.exists() else {})


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[LocalArtifact]]:
    """Windows of a learnable language (each id follows from the one before), and a tokenizer folder."""
    root = tmp_path_factory.mktemp("pretrain")
    rng = np.random.default_rng(3)

    def windows(count: int) -> np.ndarray:
        rows = np.empty((count, LENGTH), np.int64)
        rows[:, 0] = rng.integers(3, VOCABULARY, count)
        for i in range(1, LENGTH):
            rows[:, i] = 3 + (rows[:, i - 1] * 7 + 5) % (VOCABULARY - 3)
        rows[:, LENGTH // 2] = vocabulary.EOS_ID
        return rows

    shards, tokens = root / "shards", root / "tokenizer"
    (shards / "heldout").mkdir(parents=True)
    tokens.mkdir()
    for folder, count in ((shards, 30), (shards / "heldout", 9)):
        with ShardWriter(folder, LENGTH, VOCABULARY, vocabulary.EOS_ID, "digest") as writer:
            writer.add(windows(count))
    (tokens / "tokenizer.json").write_text("{}")
    facets = {"tokenizer_digest": "digest", "vocab_size": VOCABULARY}
    return {
        "tokens": [local_artifact(TokenShards, shards, {**facets, "sequence_length": LENGTH})],
        "tokenizer": [local_artifact(Tokenizer, tokens, facets)],
    }


def train(
    root: Path,
    size: int,
    made: PretrainConfig,
    inputs: dict[str, list[LocalArtifact]],
    stop: int | None = None,
    dies: int = 0,
) -> tuple[list[float], str]:
    """Train with `size` processes. Losses that the first reported, and how it ended."""
    metrics, outcome = run_processes(run, root, size, made, inputs, stop, dies)
    return [row["loss"] for row in metrics if "loss" in row], outcome


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, artifacts: Any) -> tuple[list[float], Path]:
    """The curve and the model folder of one process."""
    ctx = LocalContext(tmp_path_factory.mktemp("single"), config(dropout=0.2), artifacts)
    run(ctx)
    return [row["loss"] for row in ctx.metrics], ctx.output("model")
