"""Pre-training: order, schedule, loss, resume, and what a user's mistake ends in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.core.artifacts import Model, Tokenizer, TokenShards
from stages.core.contracts import ConfigError, InputError, LocalArtifact, Preempted
from stages.core.testing import LocalContext, local_artifact
from stages.formats import vocabulary
from stages.formats.shards import ShardWriter
from stages.modeling.folder import load_model
from stages.modeling.shape import ModelShape
from stages.pretrain.loop import learning_rate, window_numbers
from stages.pretrain.run import run
from stages.pretrain.spec import Pretrain, PretrainConfig

SHAPE = ModelShape(layers=2, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8, window=12, max_positions=64)
VOCABULARY, LENGTH = 400, 16


def config(**changes: Any) -> PretrainConfig:
    values: dict[str, Any] = {
        "shape": SHAPE,
        "sequence_length": LENGTH,
        "tokens": 12 * 4 * LENGTH,
        "batch_windows": 4,
        "micro_batch": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
        "precision": "fp32",
        "eval_windows": 8,
        "eval_every": 5,
        "checkpoint_every": 4,
        "log_every": 1,
        "threads": 1,
    }
    return PretrainConfig(**(values | changes))


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


def curve(ctx: LocalContext[PretrainConfig]) -> list[tuple[float, ...]]:
    return [(r["step"], r["loss"], r["learning_rate"], r["grad_norm"], r.get("val_loss", 0.0)) for r in ctx.metrics]


def weights(ctx: LocalContext[PretrainConfig]) -> dict[str, torch.Tensor]:
    return load_model(ctx.output("model")).state_dict()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_stopped_run_resumes_to_the_same_curve_and_weights(tmp_path: Path, artifacts: Any, dropout: float) -> None:
    whole = LocalContext(tmp_path / "whole", config(dropout=dropout), artifacts)
    run(whole)
    broken = LocalContext(tmp_path / "broken", config(dropout=dropout), artifacts, stop_after=6)
    with pytest.raises(Preempted, match="step 6 of 12"):
        run(broken)
    resumed = LocalContext(tmp_path / "broken", config(dropout=dropout), artifacts)
    run(resumed)
    assert [row[0] for row in curve(resumed)] == list(range(7, 13))
    assert curve(broken) + curve(resumed) == curve(whole)
    mine, other = weights(resumed), weights(whole)
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_it_learns_and_describes_the_model(tmp_path: Path, artifacts: Any) -> None:
    ctx = LocalContext(tmp_path, config(tokens=90 * 4 * LENGTH, dropout=0.0, warmup_steps=5), artifacts)
    run(ctx)
    assert ctx.metrics[0]["loss"] == pytest.approx(math.log(VOCABULARY), rel=0.02)  # fresh weights know nothing
    assert ctx.metrics[-1]["loss"] < 0.6 * ctx.metrics[0]["loss"]
    assert ctx.metrics[-1]["val_loss"] < ctx.metrics[0]["loss"]  # held-out windows begin at other ids
    assert ctx.facets["model"] == {
        "architecture": "MistralForCausalLM",
        "tokenizer_digest": "digest",
        "vocab_size": VOCABULARY,
        "context_length": 64,
        "dtype": "float32",
        "chat_template_digest": "none",
    }
    assert ctx.stats["parameters"] == SHAPE.parameters(VOCABULARY)
    assert ctx.stats["tokens"] == 90 * 4 * LENGTH


def test_the_stated_facets_are_the_planned_ones(tmp_path: Path, artifacts: Any) -> None:
    ctx = LocalContext(tmp_path, config(tokens=4 * 4 * LENGTH, warmup_steps=0), artifacts)
    run(ctx)
    planned = Pretrain.facets(ctx.config, {port: [a.facets for a in many] for port, many in artifacts.items()})
    assert planned["model"] == ctx.facets["model"]


def test_micro_batches_do_not_change_the_loss(tmp_path: Path, artifacts: Any) -> None:
    """Not even with dropout: what is dropped depends on the sequence's number in the run."""
    curves = []
    for size in (1, 3, 4):
        ctx = LocalContext(tmp_path / str(size), config(micro_batch=size, dropout=0.2), artifacts)
        run(ctx)
        curves.append([row["loss"] for row in ctx.metrics])
    assert np.allclose(curves[0], curves[1], atol=1e-4)
    assert np.allclose(curves[0], curves[2], atol=1e-4)


def test_the_first_loss_is_that_of_transformers(tmp_path: Path, artifacts: Any) -> None:
    """Without a document mask, the loss of a batch is transformers' own (labels = ids)."""
    from transformers import MistralForCausalLM

    settings_ = {"document_mask": False, "dropout": 0.0, "warmup_steps": 0, "learning_rate": 1e-12, "weight_decay": 0.0}
    ctx = LocalContext(tmp_path, config(tokens=4 * LENGTH, **settings_), artifacts)
    run(ctx)
    reference = MistralForCausalLM.from_pretrained(ctx.output("model"), attn_implementation="eager")
    from stages.formats.shards import Shards

    ids, _ = Shards.open(artifacts["tokens"][0].path).batch(window_numbers(0, 30, 0, 4))
    with torch.no_grad():
        loss = reference(input_ids=torch.from_numpy(ids), labels=torch.from_numpy(ids)).loss
    assert ctx.metrics[0]["loss"] == pytest.approx(float(loss), abs=1e-5)


def test_a_phase_continues_from_its_parent(tmp_path: Path, artifacts: Any) -> None:
    first = LocalContext(tmp_path / "1", config(tokens=40 * 4 * LENGTH, dropout=0.0), artifacts, node="phase_1")
    run(first)
    parent = local_artifact(Model, first.output("model"), first.facets["model"], {"benchmarks": ["piqa"]})
    second = LocalContext(tmp_path / "2", config(dropout=0.0, learning_rate=1e-4), {**artifacts, "parent": [parent]})
    run(second)
    assert second.metrics[0]["loss"] < 0.7 * first.metrics[0]["loss"]
    assert "In-domain" in (second.output("model") / "README.md").read_text()
    assert second.meta["model"]["benchmarks"] == ["piqa"]
    other = config(shape=SHAPE.model_copy(update={"layers": 3}))
    with pytest.raises(ConfigError, match=r"shape\.layers is 3, but its parent test has 2"):
        run(LocalContext(tmp_path / "3", other, {**artifacts, "parent": [parent]}))


def test_the_schedule_is_counted_in_optimizer_steps() -> None:
    made = config(tokens=1000 * 4 * LENGTH, warmup_steps=100, learning_rate=2e-6)
    assert learning_rate(made, 0) == pytest.approx(2e-8)
    assert learning_rate(made, 99) == learning_rate(made, 100) == pytest.approx(2e-6)
    assert learning_rate(made, 999) == pytest.approx(2e-7)  # 10 % at the very last step (paper 3.4)
    rates = [learning_rate(made, step) for step in range(100, 1000)]
    assert rates == sorted(rates, reverse=True)


@given(st.integers(1, 50), st.integers(0, 200), st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation_and_any_cut_gives_the_same_order(windows: int, start: int, count: int, seed: int) -> None:
    whole = window_numbers(seed, windows, 0, start + count)
    assert np.array_equal(whole[start:], window_numbers(seed, windows, start, count))
    epoch = whole[: (len(whole) // windows) * windows].reshape(-1, windows)
    assert all(sorted(row) == list(range(windows)) for row in epoch.tolist())


def test_divergence_names_the_step_and_the_setting(tmp_path: Path, artifacts: Any) -> None:
    ctx = LocalContext(tmp_path, config(learning_rate=1e30, warmup_steps=0), artifacts)
    with pytest.raises(ConfigError, match=r"test: .*at step \d+: training diverged; lower learning_rate"):
        run(ctx)


def test_half_precision_on_a_cpu_is_refused(tmp_path: Path, artifacts: Any) -> None:
    with pytest.raises(ConfigError, match=r"test\.precision = 'fp16' on a CPU"):
        run(LocalContext(tmp_path, config(precision="fp16", device="cpu"), artifacts))


def test_a_damaged_shard_is_named(tmp_path: Path, artifacts: Any) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    with ShardWriter(folder, LENGTH, VOCABULARY, vocabulary.EOS_ID, "digest") as writer:
        writer.add(np.full((4, LENGTH), 5))
    data = (folder / "shard-00000.bin").read_bytes()
    (folder / "shard-00000.bin").write_bytes(data[:-1])
    damaged = {**artifacts, "tokens": [local_artifact(TokenShards, folder)]}
    with pytest.raises(InputError, match=r"shard-00000\.bin has 127 bytes, but index\.json says 128"):
        run(LocalContext(tmp_path, config(), damaged))


def test_a_budget_that_cannot_work_is_refused_before_the_run() -> None:
    with pytest.raises(ValidationError, match="less than one batch"):
        config(tokens=10)
    with pytest.raises(ValidationError, match="warmup_steps = 12, but the budget is 12 steps"):
        config(warmup_steps=12)
    with pytest.raises(ValidationError, match=r"exceeds shape\.max_positions"):
        config(sequence_length=65, tokens=10**6)
