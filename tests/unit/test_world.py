"""Pre-training by several processes (gloo): the same curve for any number of them, resharding on resume, a lost process."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages.core.contracts import ConfigError, LocalArtifact, Preempted
from stages.core.testing import LocalCheckpoints, LocalContext
from stages.modeling.folder import load_model
from stages.pretrain.run import run
from stages.pretrain.spec import Pretrain, PretrainConfig
from tests.mortal import Mortal
from tests.unit.test_pretrain import LENGTH, artifacts, config

__all__ = ["artifacts"]  # a fixture: named here so that pytest finds it

STEPS = 12
GOLDEN = (5.97703, 5.98113, 5.9088, 5.79985, 5.85437, 5.80766, 5.75271, 5.57496, 5.4092, 5.28699, 5.26902, 5.18384)
"""Loss of steps 1 to 12 of `config(dropout=0.2)`, one process. Change it only together with `revision` (stages/pretrain/spec.py)."""


def _process(rank: int, size: int, port: int, root: Path, made: PretrainConfig, inputs: Any, stop: int | None, dies: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ctx = Mortal(root / f"rank-{rank}", made, inputs, stop_after=stop)
    ctx.checkpoints = LocalCheckpoints(root / "checkpoints")
    ctx.dies_at = dies if rank == size - 1 else 0
    outcome = "done"
    try:
        run(ctx)
    except (Preempted, ConfigError) as error:
        outcome = f"{type(error).__name__}: {error}"
    if rank == 0:
        (root / "told.json").write_text(json.dumps({"outcome": outcome, "metrics": ctx.metrics}))
    os._exit(0)


def train(
    root: Path, size: int, made: PretrainConfig, inputs: dict[str, list[LocalArtifact]], stop: int | None = None, dies: int = 0
) -> tuple[list[float], str]:
    """Train with `size` processes, forked: PyTorch is loaded already. Losses that the first told, and how it ended."""
    root.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.set_num_threads(1)  # a forked process must not wait for OpenMP's threads, which it has not
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=_process, args=(r, size, port, root, made, inputs, stop, dies)) for r in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(40)
        assert process.exitcode is not None, "a process hangs"
    told = json.loads((root / "told.json").read_text())
    return [row["loss"] for row in told["metrics"]], told["outcome"]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, artifacts: Any) -> tuple[list[float], Path]:
    """The curve and the model folder of one process."""
    ctx = LocalContext(tmp_path_factory.mktemp("single"), config(dropout=0.2), artifacts)
    run(ctx)
    return [row["loss"] for row in ctx.metrics], ctx.output("model")


def test_the_loss_curve_is_the_golden_one(single: Any) -> None:
    assert np.allclose(single[0], GOLDEN, atol=2e-4), single[0]


@pytest.mark.parametrize(("size", "tensor"), [(2, 1), (4, 1), (2, 2), (4, 2)])
def test_any_number_of_processes_trains_the_same_model(
    tmp_path: Path, artifacts: Any, single: Any, size: int, tensor: int
) -> None:
    """Data parallel, tensor parallel, both: with dropout, an accumulated batch and held-out windows."""
    made = config(dropout=0.2, processes=size, tensor_parallel=tensor, micro_batch=1)
    losses, outcome = train(tmp_path, size, made, artifacts)
    assert outcome == "done"
    assert np.allclose(losses, single[0], atol=2e-5)
    mine, other = load_model(tmp_path / "rank-0/out/model").state_dict(), load_model(single[1]).state_dict()
    for name, tensor_ in other.items():  # Adam turns rounding into steps where a gradient is nearly zero
        assert float((mine[name] - tensor_).abs().mean()) < 1e-4, name
    assert not (tmp_path / "rank-1/out").exists()


@pytest.mark.parametrize(("policy", "tensor"), [("selective", 1), ("full", 1), ("selective", 2)])
def test_activation_checkpointing_changes_nothing(tmp_path: Path, artifacts: Any, single: Any, policy: str, tensor: int) -> None:
    """Within FSDP2's blocks, whose weights come and go, and with the messages of tensor parallelism in them."""
    losses, outcome = train(tmp_path, 2, config(dropout=0.2, tensor_parallel=tensor, micro_batch=1, recompute=policy), artifacts)
    assert outcome == "done"
    assert np.allclose(losses, single[0], atol=2e-5)


def test_a_run_is_resumed_by_another_number_of_processes(tmp_path: Path, artifacts: Any, single: Any) -> None:
    """2 -> 1 -> tensor parallel 2: the checkpoint of any is cut anew for the next."""
    made = config(dropout=0.2)
    first, outcome = train(tmp_path, 2, made, artifacts, stop=5)
    assert outcome.startswith("Preempted: stopped at step 5 of 12")
    second, _ = train(tmp_path, 1, made, artifacts, stop=4)
    third, outcome = train(tmp_path, 2, made.model_copy(update={"tensor_parallel": 2}), artifacts)
    assert outcome == "done"
    assert [len(part) for part in (first, second, third)] == [5, 4, 3]
    assert np.allclose(first + second + third, single[0], atol=2e-5)


def test_a_lost_process_is_a_preemption_and_the_next_attempt_goes_on(tmp_path: Path, artifacts: Any, single: Any) -> None:
    made = config(dropout=0.2)
    before, outcome = train(tmp_path, 2, made, artifacts, dies=7)
    assert outcome.startswith("Preempted: another process of this stage was lost")
    assert 6 <= len(before) <= 8
    after, outcome = train(tmp_path, 2, made, artifacts)
    assert outcome == "done"
    assert np.allclose(after, single[0][4:], atol=2e-5)  # from the checkpoint of step 4


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, artifacts: Any) -> None:
    _, outcome = train(tmp_path, 2, config(batch_windows=3, tokens=12 * 3 * LENGTH), artifacts)
    assert outcome == "ConfigError: test.batch_windows = 3 cannot be shared evenly by 2 parts: change either"
    _, outcome = train(tmp_path, 3, config(tensor_parallel=2), artifacts)
    assert outcome == "ConfigError: test.tensor_parallel = 2 does not divide the 3 processes"


def test_topologies_that_cannot_be_are_refused_before_the_run() -> None:
    with pytest.raises(ValidationError, match="tensor_parallel = 4 cannot share 4 query and 2 key-value heads evenly"):
        config(tensor_parallel=4)
    with pytest.raises(ValidationError, match="must be a multiple of tensor_parallel = 2"):
        config(processes=3, tensor_parallel=2)
    with pytest.raises(ValidationError, match="must divide batch_windows = 4"):
        config(processes=3)


def test_how_it_is_done_is_no_part_of_the_key() -> None:
    assert config(processes=2, tensor_parallel=2, recompute="selective").identity() == config().identity()
    assert Pretrain.resources(config(processes=2)).processes == 2
