"""Moments carried from one phase to the next: on, the steps of one longer run; off, nothing is another than before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import profiles
from stages.core.errors import ConfigError, InputError, Preempted
from stages.core.testing import LocalContext
from stages.pipeline import PIPELINE
from stages.pretrain.run import run
from stages.pretrain.spec import Pretrain
from tests.support.pretraining import LENGTH, PHASE, SHAPE, artifacts, config, handed_on, phase, train

__all__ = ["artifacts"]  # a fixture: named here so that pytest finds it

LONGER = {"tokens": 2 * PHASE * 30 * LENGTH}


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory, artifacts: Any) -> list[float]:
    ctx = LocalContext(tmp_path_factory.mktemp("longer"), phase(**LONGER), artifacts)
    run(ctx)
    return [row["loss"] for row in ctx.metrics]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, artifacts: Any) -> Path:
    root = tmp_path_factory.mktemp("first")
    run(LocalContext(root, phase(export_moments=True), artifacts))
    return root


def test_a_phase_that_carries_them_takes_the_steps_of_one_longer_run(
    tmp_path: Path, artifacts: Any, longer: list[float], first: Path
) -> None:
    """Also where it is broken and resumed; one that does not carry them takes others."""
    assert json.loads((first / "out/moments/state.json").read_text()) == {"optimizer": "adamw", "updates": PHASE}
    inputs = {**artifacts, **handed_on(first)}
    second = phase(carry_moments=True, export_moments=True)
    broken = LocalContext(tmp_path / "on", second, inputs, stop_after=2)
    with pytest.raises(Preempted):
        run(broken)
    resumed = LocalContext(tmp_path / "on", second, inputs)
    run(resumed)
    losses = [row["loss"] for row in [*broken.metrics, *resumed.metrics]]
    assert losses == pytest.approx(longer[PHASE:], abs=2e-5)
    assert json.loads((tmp_path / "on/out/moments/state.json").read_text())["updates"] == 2 * PHASE
    fresh = LocalContext(tmp_path / "off", phase(), inputs)
    run(fresh)
    assert max(abs(row["loss"] - b) for row, b in zip(fresh.metrics, longer[PHASE:], strict=True)) > 1e-2
    assert not (tmp_path / "off/out/moments").exists()


def test_any_topology_hands_them_to_any_other(tmp_path: Path, artifacts: Any, longer: list[float]) -> None:
    """Tensor parallel on two processes writes them, two parts of the batch read them."""
    tensor = phase(export_moments=True, parallel={"tensor": 2})
    assert train(tmp_path / "1", 2, tensor, artifacts)[1] == "done"
    inputs = {**artifacts, **handed_on(tmp_path / "1/rank-0")}
    losses, outcome = train(tmp_path / "2", 2, phase(carry_moments=True, micro_batch_size=15), inputs)
    assert outcome == "done"
    assert losses == pytest.approx(longer[PHASE:], abs=2e-5)


def test_exporting_them_changes_no_byte_of_the_model_but_its_card(tmp_path: Path, artifacts: Any, first: Path) -> None:
    run(LocalContext(tmp_path, phase(), artifacts))
    (model,) = (tmp_path / "out/model").glob("*.safetensors")
    assert model.read_bytes() == (first / "out/model" / model.name).read_bytes()
    cards = [(root / "out/model/README.md").read_text().splitlines() for root in (tmp_path, first)]
    assert [line for line in cards[1] if line not in cards[0]] == ["| export_moments | True |"]


def test_those_of_another_model_are_refused(tmp_path: Path, artifacts: Any, first: Path) -> None:
    other = phase(shape=SHAPE.model_copy(update={"intermediate": 32}), carry_moments=True)
    taken = handed_on(first)["parent_moments"]
    with pytest.raises(InputError, match=r"gate_proj\.weight\.exp_avg has the shape \(64, 32\), not \(32, 32\)"):
        run(LocalContext(tmp_path, other, {**artifacts, "parent_moments": taken}))


# --- the choice, when a plan is made ----------------------------------------------------------------------------------


def test_off_is_what_it_was() -> None:
    """The same identity, so the same keys; no port more."""
    off, on = config(), config(carry_moments=True, export_moments=True)
    assert not {"carry_moments", "export_moments"} & off.identity().keys()
    assert on.identity() == off.identity() | {"carry_moments": True, "export_moments": True}
    assert Pretrain.outputs(off) == {"model": "Model"}
    assert Pretrain.outputs(on) == {"model": "Model", "moments": "OptimizerState"}
    assert Pretrain.facets(off, {"tokenizer": [{}]}).keys() == {"model"}


def test_who_carries_needs_who_exports() -> None:
    def ports(*settings: str) -> set[str]:
        node = PIPELINE.under(profiles.load("tiny", PIPELINE, settings).configs)["pretrain_2"]
        return {port for port, sources in node.wires.items() if sources}

    on = ("pretrain_1.export_moments=true", "pretrain_2.carry_moments=true")
    assert ports(*on) - ports() == {"parent_moments"}
    what = "node pretrain_2 reads moments of pretrain_1, which does not write it: set pretrain_1.export_moments = true"
    with pytest.raises(ConfigError, match=what):
        ports(on[1])
    what = r"pretrain_1\.carry_moments = true, but no phase comes before it: set false"
    with pytest.raises(ConfigError, match=what):
        Pretrain.check_facets("pretrain_1", config(carry_moments=True), {"parent_moments": []})


def test_a_moment_has_a_checkpoints_name_and_place(first: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(first / "out/moments/moments.safetensors")
    weights = load_file(first / "out/model/model.safetensors")
    named = {f"optimizer.{name}.{key}": weights[name].shape for name in weights for key in ("exp_avg", "exp_avg_sq")}
    assert {name: tensor.shape for name, tensor in tensors.items()} == named
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert all(bool((tensor >= 0).all()) for name, tensor in tensors.items() if name.endswith("_sq"))
