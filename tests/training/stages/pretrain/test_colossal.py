"""Engine `colossalai` of pretrain, for real, on gloo: the torch engine's curve on any topology, resume, export, what it
refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from flows import pretraining_memory
from flows.pretraining_memory import Held
from stages.core.errors import ConfigError
from stages.core.resources import Resources
from stages.core.runtime import engine_python
from stages.core.testing import LocalContext
from stages.lib.modeling.hf_checkpoint import load_model
from stages.lib.modeling.weights import FreshWeights, StoredWeights, whole
from stages.lib.training.parallel_sizes import ParallelSizes
from stages.pretrain.run import run
from stages.pretrain.spec import Pretrain, PretrainConfig
from tests.support.colossal import Program
from tests.support.pretraining import (
    LENGTH,
    PHASE,
    SHAPE,
    VOCABULARY,
    artifacts,
    config,
    handed_on,
    phase,
    single,
    train,
)

__all__ = ["artifacts", "single"]  # fixtures: named here so that pytest finds them

HALF = {"precision": "bf16", "dropout": 0.0}


@pytest.fixture(scope="session")
def colossal() -> Iterator[Program]:
    program = Program()
    yield program
    program.close()


def made(**changes: Any) -> PretrainConfig:
    """Engine `colossalai`; what is no setting of the stage is a parallel size."""
    sizes = {k: changes.pop(k) for k in ParallelSizes.model_fields if k in changes}
    if "tensor" in sizes or "pipeline" in sizes:
        sizes.setdefault("zero", 0)
    return config(**{"engine": "colossalai", "dropout": 0.2, "micro_batch_size": 1, "parallel": sizes, **changes})


TOPOLOGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {"zero": 1}),
    "ddp": (2, {"zero": 0}),
    "zero1": (2, {"zero": 1}),
    "zero2": (2, {"zero": 2}),
    "tp2": (2, {"tensor": 2}),
    "pp2": (2, {"pipeline": 2}),
    "zero2x4": (4, {"zero": 2}),
    "tp2dp2": (4, {"tensor": 2}),
    "pp2dp2": (4, {"pipeline": 2}),
    "tp2pp2": (4, {"tensor": 2, "pipeline": 2}),
}


def require_formula(held: list[dict[str, int]], chosen: PretrainConfig) -> None:
    """The plan's formula of memory says what the fullest process had of each state; of gradients that add up whole, the
    whole.
    """
    parts = len(held) // chosen.parallel.model_parallel_size
    stages = [
        pretraining_memory.states(chosen, parts, Held(chosen, SHAPE, VOCABULARY, stage), 0.0)
        for stage in range(chosen.parallel.pipeline)
    ]
    for part in ("weights", "gradients", "masters, moments"):
        most = max(by_part[part] for by_part in stages)
        assert max(one[part] for one in held) == pytest.approx(most, rel=0.01), part


@pytest.mark.parametrize("name", list(TOPOLOGIES))
def test_it_trains_the_model_that_the_torch_engine_trains(
    tmp_path: Path, artifacts: Any, single: Any, colossal: Program, name: str
) -> None:
    """With dropout, documents, an accumulated batch and held-out windows; and the folder is read by the same reader."""
    size, settings = TOPOLOGIES[name]
    losses, outcome = colossal.train(tmp_path, size, made(**settings), artifacts)
    assert outcome == "done"
    assert np.allclose(losses, single[0], atol=2e-5)
    require_formula(colossal.held, made(**settings))
    mine, other = load_model(tmp_path / "rank-0/out/model").state_dict(), load_model(single[1]).state_dict()
    assert mine.keys() == other.keys()
    for key, tensor in other.items():  # Adam turns rounding into steps where a gradient is nearly zero
        assert float((mine[key] - tensor).abs().mean()) < 1e-4, key
    folders = [sorted(p.name for p in folder.iterdir()) for folder in (tmp_path / "rank-0/out/model", single[1])]
    assert folders[0] == folders[1]
    assert not (tmp_path / "rank-1/out").exists()


def test_a_run_goes_on_in_any_topology_and_in_the_other_engine(
    tmp_path: Path, artifacts: Any, single: Any, colossal: Program
) -> None:
    """zero2 on 4, tp2 on 2, tp2 x pp2 on 4, one process, then engine torch on 2: each from the checkpoint of the one
    before.
    """
    told: list[float] = []
    for name, steps in (("zero2x4", 4), ("tp2", 2), ("tp2pp2", 2), ("one", 2)):
        size, settings = TOPOLOGIES[name]
        losses, outcome = colossal.train(tmp_path, size, made(**settings), artifacts, stop=steps)
        told += losses
        assert outcome.startswith(f"Preempted: stopped at step {len(told)} of 12")
        assert steps <= len(losses) <= steps + 1  # asked while a step is measured, it stops after the next one
    losses, outcome = train(tmp_path, 2, config(dropout=0.2), artifacts)
    assert outcome == "done"
    assert np.allclose(told + losses, single[0], atol=2e-5)


def test_moments_go_from_engine_to_engine_between_phases(tmp_path: Path, artifacts: Any, colossal: Program) -> None:
    """Tensor parallel writes them, ZeRO reads them flat and writes them on, engine torch reads those: one longer run's
    steps.
    """
    run(whole := LocalContext(tmp_path / "longer", phase(tokens=3 * PHASE * 30 * LENGTH), artifacts))
    told: list[float] = []
    inputs = artifacts
    both = {"carry_moments": True, "export_moments": True, "engine": "colossalai", "micro_batch_size": 15}
    for root, made_ in (
        (tmp_path / "1", phase(**both | {"carry_moments": False}, parallel={"tensor": 2, "zero": 0})),
        (tmp_path / "2", phase(**both, parallel={"zero": 2})),
    ):
        losses, outcome = colossal.train(root, 2, made_, inputs)
        assert outcome == "done"
        told += losses
        inputs = {**artifacts, **handed_on(root / "rank-0")}
    run(last := LocalContext(tmp_path / "3", phase(carry_moments=True), inputs))
    told += [row["loss"] for row in last.metrics]
    assert told == pytest.approx([row["loss"] for row in whole.metrics], abs=2e-5)


@pytest.mark.slow  # bf16 on a processor: some 10 seconds a topology
@pytest.mark.parametrize("name", ["zero2", "tp2", "tp2pp2", "gemini"])
def test_a_resumed_run_repeats_an_unbroken_one_exactly(
    tmp_path: Path, artifacts: Any, colossal: Program, name: str
) -> None:
    """In half precision, where Colossal-AI's own checkpoints lose the float32 weights. Gemini:
    `tests/support/colossal/chunks.py`.
    """
    size, settings = TOPOLOGIES.get(name, (2, {"zero": 3, "micro_batch_size": 2, "device": "cuda"}))
    chosen = made(**settings, **HALF)
    unbroken, outcome = colossal.train(tmp_path / "whole", size, chosen, artifacts)
    assert outcome == "done"
    require_formula(colossal.held, chosen)
    first, _ = colossal.train(tmp_path / "broken", size, chosen, artifacts, stop=5)
    second, outcome = colossal.train(tmp_path / "broken", size, chosen, artifacts)
    assert outcome == "done"
    assert 5 <= len(first) <= 6  # asked while a step is measured, it stops after the next one
    assert first + second == unbroken
    mine, other = (load_model(tmp_path / run / "rank-0/out/model").state_dict() for run in ("broken", "whole"))
    assert all(torch.equal(mine[key], other[key]) for key in other)


@pytest.mark.slow  # five runs in half precision
def test_gemini_adds_up_the_gradients_of_several_micro_batches(
    tmp_path: Path, artifacts: Any, colossal: Program
) -> None:
    """As ZeRO on one process does, and stopped between; upstream's are 1.6 times too large here
    (`colossalai_cpu.repair_accumulation`).
    """

    def norms(run: str) -> list[float]:
        return [row["grad_norm"] for row in json.loads((tmp_path / run / "told-0.json").read_text())["metrics"]]

    colossal.train(tmp_path / "whole", 1, made(zero=1, **HALF), artifacts)
    chosen, found = made(zero=3, device="cuda", **HALF), []
    for stop in (5, None):
        _, outcome = colossal.train(tmp_path / "gemini", 2, chosen, artifacts, stop=stop)
        found += norms("gemini")
    assert outcome == "done"
    assert np.allclose(found, norms("whole"), rtol=2e-2)  # gradients are added up in bf16
    half = {"dropout": 0.0, "precision": "fp16", "warmup_steps": 0}
    colossal.train(tmp_path / "zero", 2, made(zero=2, **half), artifacts, scale=2.0**10)
    colossal.train(tmp_path / "chunks", 2, made(zero=3, device="cuda", **half), artifacts, scale=2.0**10)
    assert np.allclose(norms("chunks"), norms("zero"), rtol=1e-2)
    # what overflows is left out; the two need not agree on the scale where it does: Gemini divides after the sum
    colossal.train(tmp_path / "over", 2, made(zero=3, device="cuda", **half), artifacts, scale=2.0**20)
    over = norms("over")
    assert over[:3] == [np.inf] * 3
    assert np.isfinite(over[6:]).all()


HALF_TOPOLOGIES: tuple[tuple[int, dict[str, Any]], ...] = (
    (4, {"zero": 1, "tensor": 2}),
    (4, {"zero": 1, "pipeline": 2}),
    (2, {"zero": 3, "micro_batch_size": 2, "device": "cuda"}),
    (2, {"zero": 2, "offload": True, "device": "cuda"}),
)
"""ZeRO inside tensor and pipeline parallel, Gemini, ZeRO with its part elsewhere: in half precision alone."""


@pytest.mark.parametrize(("size", "settings"), HALF_TOPOLOGIES, ids=["tp2", "pp2", "gemini", "offload"])
def test_in_half_precision_it_begins_with_the_exact_weights(
    tmp_path: Path, artifacts: Any, colossal: Program, size: int, settings: dict[str, Any]
) -> None:
    """And not with those that it computes with, nor with another process's: a step that moves none leaves every bit."""
    still = {"tokens": 4 * LENGTH, "learning_rate": 1e-30, "warmup_steps": 0, "eval_windows": 0}
    chosen = made(**settings, **HALF, **still)
    _, outcome = colossal.train(tmp_path, size, chosen, artifacts)
    assert outcome == "done"
    if chosen.parallel.plugin == "gemini":
        require_formula(colossal.held, chosen)
    draw, stored = FreshWeights(0, SHAPE.layers), StoredWeights(tmp_path / "rank-0/out/model")
    shapes = stored.shapes()
    assert len(shapes) == 3 + 9 * SHAPE.layers
    for name, shape in shapes.items():
        part = whole(shape)
        assert torch.equal(stored(name, shape, part), draw(name, shape, part)), name


@pytest.mark.slow  # four runs in bf16, two of them of four processes
def test_half_precision_keeps_float32_weights_over_topologies(
    tmp_path: Path, artifacts: Any, colossal: Program
) -> None:
    """Resharded on the way. bf16 rounds to 3 digits, sums come in another order, and Adam takes a whole step where a
    gradient is nearly zero: one process that only takes its micro-batches otherwise is up to 6.6e-3 apart in these
    twelve steps, and 5e-4 in the first three (measured over 4 seeds; over these topologies 9.1e-3 and 5e-4).
    """
    unbroken, _ = colossal.train(tmp_path / "whole", 1, made(zero=1, **HALF), artifacts)
    told: list[float] = []
    for size, settings in HALF_TOPOLOGIES:
        losses, _ = colossal.train(tmp_path / "run", size, made(**settings, **HALF), artifacts, stop=3)
        told += losses
    assert len(told) == len(unbroken)
    assert np.allclose(told[:3], unbroken[:3], rtol=0, atol=1e-3)
    assert np.allclose(told, unbroken, rtol=0, atol=2e-2)
    weights = load_model(tmp_path / "whole" / "rank-0/out/model").state_dict()["lm_head.weight"]
    assert not torch.equal(weights, weights.bfloat16().float())  # the exported weights are the float32 ones


def test_an_overflow_is_left_out_and_the_loss_scale_is_resumed(
    tmp_path: Path, artifacts: Any, colossal: Program
) -> None:
    """From 2**20 on, where the first steps overflow; stopped between the two overflows that make it smaller."""
    chosen = made(zero=2, dropout=0.0, precision="fp16", warmup_steps=0)
    unbroken, outcome = colossal.train(tmp_path / "whole", 2, chosen, artifacts, scale=2.0**20)
    assert outcome == "done"
    assert 2 <= colossal.stats["skipped_steps"] < 12
    assert "trouble" not in colossal.stats  # the loss scale's own affair
    first, _ = colossal.train(tmp_path / "broken", 2, chosen, artifacts, stop=1, scale=2.0**20)
    second, _ = colossal.train(tmp_path / "broken", 2, chosen, artifacts, scale=2.0**20)
    assert first + second == unbroken


@pytest.mark.parametrize("name", ["zero1", "tp2pp2"])
def test_a_step_that_would_do_harm_is_left_out_as_in_the_torch_engine(
    tmp_path: Path, artifacts: Any, colossal: Program, name: str
) -> None:
    """Every step whose loss or norm is above the median of those before counts as a spike here."""
    policy = {"spikes": {"deviations": 0.1, "window": 8, "skips": 12}}
    whole = LocalContext(tmp_path / "torch", config(dropout=0.2, **policy), artifacts)
    run(whole)
    size, settings = TOPOLOGIES[name]
    losses, outcome = colossal.train(tmp_path / name, size, made(**settings, **policy), artifacts)
    assert outcome == "done"
    assert colossal.stats["trouble"]["spike"] == whole.stats["trouble"]["spike"] > 1
    assert np.allclose(losses, [row["loss"] for row in whole.metrics], atol=2e-5)


@pytest.mark.parametrize("name", ["zero2", "pp2"])
def test_a_lost_process_is_a_preemption_and_the_next_attempt_goes_on(
    tmp_path: Path, artifacts: Any, single: Any, colossal: Program, name: str
) -> None:
    size, settings = TOPOLOGIES[name]
    before, outcome = colossal.train(tmp_path, size, made(**settings), artifacts, dies=7)
    assert (
        outcome
        == "Preempted: another process of this stage was lost; the next attempt goes on from the last checkpoint |"
        " killed"
    )
    assert 6 <= len(before) <= 8
    after, outcome = colossal.train(tmp_path, size, made(**settings), artifacts)
    assert outcome == "done"
    assert np.allclose(after, single[0][4:], atol=2e-5)  # from the checkpoint of step 4


def test_activation_checkpointing_and_an_uneven_pipeline_change_nothing(
    tmp_path: Path, artifacts: Any, colossal: Program
) -> None:
    """Three blocks on two stages and on two tensor ranks, without window and documents."""
    changes = {
        "shape": SHAPE.model_copy(update={"layers": 3, "window": None}),
        "document_mask": False,
        "tokens": 4 * 4 * LENGTH,
    }
    alone, _ = colossal.train(tmp_path / "alone", 1, config(dropout=0.2, **changes), artifacts)
    for name, policy in (("pp2", "full"), ("pp2", "selective"), ("tp2", "full"), ("tp2", "selective")):
        size, settings = TOPOLOGIES[name]
        losses, outcome = colossal.train(
            tmp_path / name / policy, size, made(**settings, **changes, recompute=policy), artifacts
        )
        assert outcome == "done"
        assert np.allclose(losses, alone, atol=2e-5)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, artifacts: Any, colossal: Program) -> None:
    _, outcome = colossal.train(tmp_path, 2, made(global_batch_size=3, tokens=12 * 3 * LENGTH), artifacts)
    assert outcome == "ConfigError: test.global_batch_size = 3 cannot be shared evenly by 2 parts: change either"
    _, outcome = colossal.train(tmp_path, 2, made(pipeline=2, micro_batch_size=4), artifacts)
    assert outcome.startswith("ConfigError: test: parallel.pipeline = 2 needs as many whole micro-batches")
    _, outcome = colossal.train(tmp_path, 3, made(pipeline=2), artifacts)
    assert outcome == "ConfigError: test.parallel.pipeline = 2 does not divide the 3 processes"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"tensor": 4},
            r"parallel\.tensor = 4 cannot share 4 query and 2 key-value heads evenly",
        ),
        ({"pipeline": 3}, r"parallel\.pipeline = 3 is deeper than the model: shape\.layers = 2"),
        (
            {"pipeline": 2, "zero": 2, "precision": "bf16"},
            "exchange gradients after every micro-batch",
        ),
        ({"zero": 1, "tensor": 2}, "Colossal-AI has not in float32"),
        ({"zero": 2, "pipeline": 2}, "Colossal-AI has not in float32"),
        ({"zero": 3, "tensor": 2}, r"shares the batch alone: set parallel\.tensor and"),
        ({"zero": 3}, "Gemini in engine 'colossalai'.*set device = 'cuda'"),
        ({"zero": 3, "device": "cuda", "precision": "bf16", "offload": True}, "is for parallel.zero = 1 and 2"),
        ({"offload": True}, "set device = 'cuda' with precision 'bf16' or 'fp16'"),
        ({"context": 2}, r"parallel\.context = 2: no engine here cuts a sequence"),
        ({"sequence_length": 65, "tokens": 10**6}, r"exceeds shape\.max_positions"),
        ({"engine": "torch", "pipeline": 2}, "engine 'torch' has no pipeline"),
    ],
)
def test_what_it_cannot_honour_is_refused_before_the_run(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        made(**changes)


@pytest.mark.parametrize(
    ("changes", "nproc", "reason"),
    [
        (
            {"micro_batch_size": 4},
            2,
            r"^p: parallel\.pipeline = 2 needs .*: 4 windows are 1 of micro_batch_size = 4$",
        ),
        ({}, 3, r"^p\.parallel\.pipeline = 2 does not divide the 3 processes$"),
    ],
)
def test_processes_that_cannot_share_it_are_refused_before_the_run(
    changes: dict[str, Any], nproc: int, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        Pretrain.check_resources("p", made(pipeline=2, **changes), Resources(nproc_per_node=nproc))


def test_the_engine_is_part_of_the_key_and_the_topology_is_not() -> None:
    assert made(pipeline=2).identity() == made(zero=1).identity()
    assert made().identity() != config(dropout=0.2).identity()


def test_where_it_is_not_installed_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    request: Any = SimpleNamespace(node="pretrain_1", config=made().model_dump(mode="json"))
    monkeypatch.delenv("MOXIN_COLOSSALAI_PYTHON", raising=False)
    with pytest.raises(
        ConfigError,
        match=(
            r"pretrain_1\.engine = 'colossalai' is not installed where this runs \(MOXIN_COLOSSALAI_PYTHON is not set\)"
        ),
    ):
        engine_python(Pretrain, request)
    monkeypatch.setenv("MOXIN_COLOSSALAI_PYTHON", "/bin/sh")
    assert engine_python(Pretrain, request) == "/bin/sh"
    monkeypatch.setenv("MOXIN_ENTERED", "/bin/sh")
    assert engine_python(Pretrain, request) is None
    request.config = config(shape=SHAPE).model_dump(mode="json")
    assert engine_python(Pretrain, request) is None
