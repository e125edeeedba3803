"""Fine-tuning that meets a loss or a gradient that is no number: left out, told, and ended when it does not pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, Preempted
from stages.core.testing import LocalContext
from stages.dpo.run import PairTrainer
from stages.dpo.run import run as run_dpo
from stages.grpo.rollout import RolloutTrainer
from stages.grpo.run import run as run_grpo
from stages.lib.finetuning import model_loading, trained_model
from stages.lib.formats import chat_template
from stages.sft.loss import SmoothedTrainer
from stages.sft.run import run as run_sft
from tests.support import tuning

Inputs = dict[str, list[LocalArtifact]]
STAGES: dict[str, Any] = {
    "sft": (run_sft, tuning.sft_config, SmoothedTrainer),
    "dpo": (run_dpo, tuning.dpo_config, PairTrainer),
    "grpo": (run_grpo, tuning.grpo_config, RolloutTrainer),
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    return tuning.inputs(tmp_path_factory.mktemp("trouble"), rows=16)


def poison(monkeypatch: pytest.MonkeyPatch, stage: str, factors: dict[int, float]) -> None:
    """Multiply the loss of these steps, counted from 1, of a trainer."""
    trainer = STAGES[stage][2]
    exact = trainer.compute_loss

    def compute_loss(self: Any, *given: Any, **named: Any) -> Any:
        return exact(self, *given, **named) * factors.get(self.state.global_step + 1, 1.0)

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)


def context(
    root: Path, stage: str, artifacts: dict[str, Inputs], stop_after: int | None = None, **changes: Any
) -> LocalContext[Any]:
    return LocalContext(root, STAGES[stage][1](**changes), artifacts[stage], stop_after=stop_after)


def numbers(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows without clocks."""
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_gives_no_number_changes_nothing_and_is_told(
    tmp_path: Path, artifacts: dict[str, Inputs], monkeypatch: pytest.MonkeyPatch, stage: str, factor: float
) -> None:
    poison(monkeypatch, stage, {3: factor})
    ctx = context(tmp_path, stage, artifacts, checkpoint_every=1)
    STAGES[stage][0](ctx)
    phases = 2 if stage == "grpo" else 1  # each has a third step: the first two steps of one are four of the next
    steps = [3, 7][:phases]
    told = [row for row in ctx.metrics if "skipped" in row]
    assert [row["step"] for row in told] == steps
    assert all(row["skipped"] == row["not_finite"] == 1 and "loss" not in row for row in told)
    assert all("loss" in row and "grad_norm" in row for row in ctx.metrics if "skipped" not in row)
    trouble = ctx.stats["trouble"]
    assert trouble["not_finite"] == phases
    assert trouble["events"] == [{"step": step, "event": "skipped", "not_finite": 1.0} for step in steps]
    assert "## Trouble" in (ctx.output("model") / "README.md").read_text()
    weights = load_file(ctx.output("model") / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert not (tmp_path / "checkpoints" / "00000003").exists(), "none in the middle of trouble"


@pytest.mark.parametrize("stage", STAGES)
def test_trouble_that_stays_ends_with_one_line_and_no_model(
    tmp_path: Path, artifacts: dict[str, Inputs], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    poison(monkeypatch, stage, dict.fromkeys(range(2, 100), torch.nan))
    ctx = context(tmp_path, stage, artifacts, checkpoint_every=1, spikes={"skips": 1})
    with pytest.raises(ConfigError, match=r"^test: the loss is nan at step 2: training diverged; lower learning_rate"):
        STAGES[stage][0](ctx)
    assert [row["step"] for row in ctx.metrics if "skipped" in row] == [2, 3]
    assert not (ctx.output("model") / "model.safetensors").exists()


def test_a_last_step_that_gives_no_number_is_no_end(
    tmp_path: Path, artifacts: dict[str, Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, "sft", {10: torch.nan})
    ctx = context(tmp_path, "sft", artifacts)
    with pytest.raises(ConfigError, match="the loss is nan at step 10: training diverged"):
        run_sft(ctx)


def test_a_spike_is_left_out_where_that_is_asked(
    tmp_path: Path, artifacts: dict[str, Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, "sft", {9: 1e4})
    asked = context(tmp_path / "asked", "sft", artifacts, spikes={"deviations": 100, "window": 8}, learning_rate=1e-4)
    run_sft(asked)
    assert [row["step"] for row in asked.metrics if "skipped" in row] == [9]
    assert asked.metrics[8]["spike"] > 100
    assert asked.metrics[8]["loss"] > 10_000
    default = context(tmp_path / "default", "sft", artifacts, learning_rate=1e-4)
    run_sft(default)
    assert "trouble" not in default.stats
    assert numbers(asked.metrics)[:8] == numbers(default.metrics)[:8]
    assert asked.metrics[9]["loss"] != default.metrics[9]["loss"]  # it would have changed the model


@pytest.mark.parametrize(("stage", "bad", "stops"), [("sft", (3, 4), (2, 4)), ("grpo", (3,), (1, 5))])
def test_a_run_that_is_stopped_around_trouble_resumes_to_the_same_curve_and_report(
    tmp_path: Path,
    artifacts: dict[str, Inputs],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    bad: tuple[int, ...],
    stops: tuple[int, ...],
) -> None:
    """The guard's counts lie in the checkpoints, from one phase of `grpo` to the next too."""
    poison(monkeypatch, stage, dict.fromkeys(bad, torch.nan))
    whole = context(tmp_path / "whole", stage, artifacts)
    STAGES[stage][0](whole)
    rows: list[dict[str, float]] = []
    for stop in (*stops, None):
        ctx = context(tmp_path / "broken", stage, artifacts, stop_after=stop)
        if stop is None:
            STAGES[stage][0](ctx)
        else:
            with pytest.raises(Preempted):
                STAGES[stage][0](ctx)
        rows += numbers(ctx.metrics)
    last = {row["step"]: row for row in rows}  # of a step that was made twice
    assert list(last.values()) == numbers(whole.metrics)
    assert ctx.stats["trouble"] == whole.stats["trouble"]
    one, other = (load_file(each.output("model") / "model.safetensors") for each in (whole, ctx))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_policy_that_draws_from_no_numbers_has_diverged(tmp_path: Path, artifacts: dict[str, Inputs]) -> None:
    """One update a batch of responses: the next thing that meets the weights is a draw."""
    ctx = context(tmp_path, "grpo", artifacts, learning_rate=1e30, num_mini_batches=1)
    with pytest.raises(ConfigError, match=r"at step \d+: training diverged; lower learning_rate"):
        run_grpo(ctx)


def test_weights_that_are_no_numbers_are_no_model_whoever_trained_them(
    tmp_path: Path, artifacts: dict[str, Inputs]
) -> None:
    ctx = context(tmp_path, "sft", artifacts)
    model = model_loading.load_model(artifacts["sft"]["parent"][0].path, torch.device("cpu"))
    name, weight = list(model.named_parameters())[3]
    weight.data[0, 0] = torch.nan
    with pytest.raises(ConfigError, match=f"the weight {name} holds what is no number at step 7: training diverged"):
        trained_model.keep(ctx, model, chat_template.TULU, 7)
    assert ctx.checkpoints.latest() is None
    assert not (ctx.output("model") / "model.safetensors").exists()


def test_an_engine_that_leaves_no_step_out_takes_no_policy_and_no_key_has_the_default(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine 'open-instruct' leaves no step out: unset spikes, or set engine ="):
        tuning.sft_config(engine="open-instruct", precision="bf16", spikes={"skips": 1})
    assert "spikes" not in tuning.grpo_config().identity()
    assert tuning.grpo_config(spikes={"skips": 1}).identity()["spikes"]["skips"] == 1
