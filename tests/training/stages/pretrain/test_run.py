"""Pre-training: order, schedule, loss, resume, and what a user's mistake ends in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages.core.artifacts import Model, TokenShards
from stages.core.errors import ConfigError, InputError, Preempted
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats import vocabulary
from stages.lib.formats.shards import Shards, ShardWriter
from stages.lib.modeling import flex
from stages.lib.modeling.hf_checkpoint import load_model
from stages.lib.training.backends.fsdp import TorchBackend
from stages.lib.training.data_order import DataOrder
from stages.lib.training.evaluation import HeldOutEvaluation
from stages.pretrain.run import require_compiler, run, schedule
from stages.pretrain.spec import Pretrain, PretrainConfig
from tests.support.pretraining import LENGTH, SHAPE, VOCABULARY, config


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
    saved, read = {"disk_seconds", "pause_seconds"}, {"read_bytes", "read_seconds"}
    assert (broken.checkpoints.most.keys(), resumed.checkpoints.most.keys()) == (saved, saved | read)
    assert resumed.checkpoints.most["read_bytes"] > 12 * sum(weight.numel() for weight in other.values())
    assert whole.stats["loader_tokens_per_second"] > 0
    assert all(row["step_processor_seconds"] > 0 for row in whole.metrics)


def test_a_step_is_saved_before_its_heldout_loss_is_measured(
    tmp_path: Path, artifacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look may end the process, as a kernel that cannot be made did on every attempt: the next one has lost
    nothing.
    """
    whole = LocalContext(tmp_path / "whole", config(eval_every=4), artifacts)
    run(whole)

    def ends(self: HeldOutEvaluation) -> float:
        raise SystemExit("killed")

    broken = LocalContext(tmp_path / "broken", config(eval_every=4), artifacts)
    with monkeypatch.context() as patch:
        patch.setattr(HeldOutEvaluation, "mean_loss", ends)
        with pytest.raises(SystemExit):
            run(broken)
    found = broken.checkpoints.latest()
    assert found is not None
    assert found[0] == 4
    resumed = LocalContext(tmp_path / "broken", config(eval_every=4), artifacts)
    run(resumed)
    assert curve(broken) + curve(resumed) == curve(whole)  # the look that was missed is made first


def test_a_heldout_loss_that_fails_is_told_and_counted_and_the_training_goes_on(
    tmp_path: Path, artifacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LocalContext(tmp_path / "whole", config(), artifacts)
    run(whole)

    def fails(self: Any, batch: Any) -> float:
        self.model.eval()
        raise RuntimeError("Failed to find C compiler\nand more")

    ctx = LocalContext(tmp_path / "failing", config(), artifacts)
    monkeypatch.setattr(TorchBackend, "evaluate", fails)
    run(ctx)
    assert [row[:4] for row in curve(ctx)] == [row[:4] for row in curve(whole)]
    assert not any("val_loss" in row for row in ctx.metrics)
    assert ctx.stats["unmeasured"] == {"RuntimeError: Failed to find C compiler": 3}  # steps 5, 10 and 12
    assert ctx.stats["val_loss"] is None
    assert (
        sum("was not measured, training goes on: RuntimeError: Failed to find C compiler" in line for line in ctx.logs)
        == 3
    )
    mine, other = weights(ctx), weights(whole)
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_what_fails_after_the_last_step_costs_no_training(
    tmp_path: Path, artifacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LocalContext(tmp_path / "whole", config(), artifacts)
    run(whole)

    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    ctx = LocalContext(tmp_path / "broken", config(), artifacts)
    with monkeypatch.context() as patch:
        patch.setattr("stages.pretrain.run.save_beside", full)
        with pytest.raises(OSError, match="no space"):
            run(ctx)
    again = LocalContext(tmp_path / "broken", config(), artifacts)
    run(again)
    assert [row[0] for row in curve(again)] == [12]  # what was not told yet: the last row, with its held-out loss
    assert (again.stats["final_loss"], again.stats["val_loss"]) == (whole.stats["final_loss"], whole.stats["val_loss"])
    mine, other = weights(again), weights(whole)
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_a_machine_that_cannot_make_kernels_is_found_at_the_start() -> None:
    """Really compiled: with this machine's compiler, and with one that is not there."""
    from torch._inductor import config as inductor

    cpu = torch.device("cpu")
    with inductor.patch({"force_disable_caches": True}):
        assert flex.problem(cpu) is None
        require_compiler("pretrain_1", cpu)
        torch._dynamo.reset()
        with (
            inductor.patch({"cpp.cxx": ("/nowhere/g++",)}),
            pytest.raises(
                ConfigError,
                match=(
                    r"^pretrain_1: kernels cannot be compiled on this machine \(.*\): give its image a C compiler"
                    r" .*attention = 'blocks'"
                ),
            ),
        ):
            require_compiler("pretrain_1", cpu)
        torch._dynamo.reset()


def test_which_configurations_compile_kernels() -> None:
    plain: dict[str, Any] = {
        "document_mask": False,
        "shape": SHAPE.model_copy(update={"window": LENGTH}),
        "dropout": 0.0,
    }
    assert not config(**plain).compiles  # flash attention
    assert config(**plain | {"document_mask": True}).compiles
    assert config(**plain | {"shape": SHAPE}).compiles
    assert config(**plain | {"document_mask": True, "dropout": 0.1}).compiles  # its held-out windows see no dropout
    assert not config(**plain | {"document_mask": True, "dropout": 0.1, "eval_windows": 0}).compiles
    assert not config(**plain | {"document_mask": True, "attention": "blocks"}).compiles
    assert config(**plain | {"compile": True}).compiles


def test_a_released_model_drops_nothing_and_a_phase_drops_what_its_own_setting_says(
    tmp_path: Path, artifacts: Any
) -> None:
    """The dropout of pre-training is a setting of that training: `train()` on the folder, as fine-tuning engines call
    it, changes nothing.
    """
    from transformers import MistralForCausalLM

    first = LocalContext(tmp_path / "1", config(dropout=0.3), artifacts)
    run(first)
    folder = first.output("model")
    model = MistralForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert model.config.attention_dropout == 0.0
    ids = torch.arange(3, 3 + 2 * LENGTH).view(2, LENGTH)
    with torch.no_grad():
        assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)
    assert "| dropout | 0.3 |" in (folder / "README.md").read_text()
    parent = local_artifact(Model, folder, first.facets["model"])
    curves = {}
    for dropout in (0.0, 0.3):
        ctx = LocalContext(tmp_path / str(dropout), config(dropout=dropout), {**artifacts, "parent": [parent]})
        run(ctx)
        curves[dropout] = curve(ctx)
    assert curves[0.0] != curves[0.3]


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
        ctx = LocalContext(tmp_path / str(size), config(micro_batch_size=size, dropout=0.2), artifacts)
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
    numbers = DataOrder(30, 4, 1, 0).numbers(np.arange(4))
    ids = Shards.open(artifacts["tokens"][0].entries()).windows(numbers).astype(np.int64)
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
    rate = schedule(config(tokens=1000 * 4 * LENGTH, warmup_steps=100, learning_rate=2e-6))
    assert rate(0) == pytest.approx(2e-8)
    assert rate(99) == rate(100) == pytest.approx(2e-6)
    assert rate(999) == pytest.approx(2e-7)  # 10 % at the very last step (paper 3.4)
    rates = [rate(step) for step in range(100, 1000)]
    assert rates == sorted(rates, reverse=True)


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
    with pytest.raises(InputError, match=r"shard-00000\.bin has 143 bytes, but index\.json says 144"):
        run(LocalContext(tmp_path, config(), damaged))


def test_a_budget_that_cannot_work_is_refused_before_the_run() -> None:
    with pytest.raises(ValidationError, match="less than one batch"):
        config(tokens=10)
    with pytest.raises(ValidationError, match="warmup_steps = 12, but the budget is 12 steps"):
        config(warmup_steps=12)
    with pytest.raises(ValidationError, match=r"exceeds shape\.max_positions"):
        config(sequence_length=65, tokens=10**6)
