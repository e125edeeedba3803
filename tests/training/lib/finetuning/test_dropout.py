"""What a parent was pre-trained with does not reach its tuning; and a run goes on with fewer rows at one time as if
nothing had happened.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.core.artifacts import Model
from stages.core.context import LocalArtifact
from stages.core.errors import Preempted
from stages.core.testing import LocalContext, local_artifact
from stages.dpo.run import run as run_dpo
from stages.grpo.run import run as run_grpo
from stages.lib.engines import validation
from stages.lib.finetuning import model_loading
from stages.sft.run import run as run_sft
from stages.sft.spec import Sft
from tests.support import tuning

STAGES: dict[str, Any] = {
    "sft": (run_sft, tuning.sft_config),
    "dpo": (run_dpo, tuning.dpo_config),
    "grpo": (run_grpo, tuning.grpo_config),
}
Inputs = dict[str, list[LocalArtifact]]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    return tuning.inputs(tmp_path_factory.mktemp("dropout"), rows=12)


def with_dropout(parent: LocalArtifact, folder: Path) -> LocalArtifact:
    """The same weights, whose config.json says 0.1, as pre-training's did."""
    shutil.copytree(parent.path, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_dropout": 0.1}))
    return local_artifact(Model, folder, parent.facets, dict(parent.meta))


def run(root: Path, stage: str, inputs: Inputs, **changes: Any) -> LocalContext[Any]:
    action, config = STAGES[stage]
    ctx = LocalContext(root, config(**changes), inputs)
    action(ctx)
    return ctx


@pytest.mark.parametrize(
    ("stage", "first"), [("sft", {}), ("dpo", {"loss": 0.693147}), ("grpo", {"kl": 0.0, "clip_fraction": 0.0})]
)
def test_a_parents_dropout_does_not_reach_its_tuning(
    tmp_path: Path, artifacts: dict[str, Inputs], stage: str, first: dict[str, float]
) -> None:
    """Responses are sampled, and references computed, without dropout: with it the first ratio would be noise where it
    is 1.
    """
    inputs = artifacts[stage]
    own = {**inputs, "parent": [with_dropout(inputs["parent"][0], tmp_path / "parent")]}
    changes: dict[str, Any] = (
        {"context_phases": [{"steps": 1, "max_response_length": 4, "num_generations": 4}]}
        if stage == "grpo"
        else {"epochs": 1}
    )
    plain, dropped = (
        run(tmp_path / name, stage, given, **changes) for name, given in (("plain", inputs), ("dropped", own))
    )
    rows = [
        [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in ctx.metrics]
        for ctx in (plain, dropped)
    ]
    assert rows[0] == rows[1]
    weights = [load_file(ctx.output("model") / "model.safetensors") for ctx in (plain, dropped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name, value in first.items():
        assert dropped.metrics[0][name] == pytest.approx(value, abs=1e-6)


def test_a_model_is_loaded_with_the_dropout_that_is_declared(tmp_path: Path, artifacts: dict[str, Inputs]) -> None:
    folder = Path(with_dropout(artifacts["sft"]["parent"][0], tmp_path / "parent").path)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    for dropout, differ in ((0.0, False), (0.5, True)):
        model = model_loading.load_model(folder, torch.device("cpu"), dropout=dropout).train()
        torch.manual_seed(0)
        one, two = model(input_ids=ids).logits, model(input_ids=ids).logits
        assert torch.equal(one, two) is not differ


def test_after_memory_ran_out_a_run_goes_on_with_fewer_rows_at_one_time(
    tmp_path: Path, artifacts: dict[str, Inputs]
) -> None:
    """The global batch, and so every step, is the same up to the order of additions."""
    config = tuning.sft_config(micro_batch_size=4)
    whole = LocalContext(tmp_path / "whole", config, artifacts["sft"])
    run_sft(whole)
    broken = LocalContext(tmp_path / "broken", config, artifacts["sft"], stop_after=4)
    with pytest.raises(Preempted):
        run_sft(broken)
    smaller = Sft.smaller(config)
    assert smaller is not None
    assert (smaller.micro_batch_size, smaller.global_batch_size, smaller.identity()) == (2, 4, config.identity())
    resumed = LocalContext(tmp_path / "broken", smaller, artifacts["sft"])
    run_sft(resumed)
    rows = [*broken.metrics, *resumed.metrics]
    assert [row["step"] for row in rows] == [row["step"] for row in whole.metrics]
    for mine, other in zip(rows, whole.metrics, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert mine["learning_rate"] == other["learning_rate"]
    weights = [load_file(ctx.output("model") / "model.safetensors") for ctx in (whole, resumed)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-3) for name in weights[0])


@pytest.mark.parametrize("engine", ["trl", "verl", "areal"])
def test_reinforcement_has_no_dropout_on_any_engine(engine: str) -> None:
    with pytest.raises(ValueError, match=r"attention_dropout = 0\.1: reinforcement takes the ratio"):
        validation.require_reinforcement(SimpleNamespace(engine=engine, attention_dropout=0.1))
