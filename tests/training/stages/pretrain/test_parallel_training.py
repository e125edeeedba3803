"""Pre-training by several processes (gloo): the same curve for any number of them, resharding on resume, a lost
process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from stages.core.errors import ConfigError
from stages.core.resources import Resources
from stages.lib.modeling import weight_files
from stages.lib.modeling.hf_checkpoint import load_model
from stages.pretrain.spec import Pretrain
from tests.support.pretraining import LENGTH, artifacts, config, single, train

__all__ = ["artifacts", "single"]  # fixtures: named here so that pytest finds them

STEPS = 12
GOLDEN = (5.9829, 6.00558, 5.90463, 5.78596, 5.79108, 5.79934, 5.91046, 5.84207, 5.42381, 5.36477, 5.29619, 5.41428)
"""Loss of steps 1 to 12 of `config(dropout=0.2)`, one process. Change it only together with `revision`
(stages/pretrain/spec.py).
"""


def test_the_loss_curve_is_the_golden_one(single: Any) -> None:
    assert np.allclose(single[0], GOLDEN, atol=2e-4), single[0]


@pytest.mark.parametrize(("size", "tensor", "zero"), [(2, 1, 2), (4, 1, 1), (4, 1, 3), (2, 2, 3), (4, 2, 1)])
def test_any_number_of_processes_trains_the_same_model(
    tmp_path: Path,
    artifacts: Any,
    single: Any,
    size: int,
    tensor: int,
    zero: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Data and tensor parallel, ZeRO 1 to 3: with dropout, an accumulated batch and held-out windows. Processes write
    the model's three files together.
    """
    monkeypatch.setattr(weight_files, "SHARD_SIZE", 60_000)
    made = config(dropout=0.2, parallel={"tensor": tensor, "zero": zero}, micro_batch_size=1)
    losses, outcome = train(tmp_path, size, made, artifacts)
    assert outcome == "done"
    assert np.allclose(losses, single[0], atol=2e-5)
    mine, other = load_model(tmp_path / "rank-0/out/model").state_dict(), load_model(single[1]).state_dict()
    for name, tensor_ in other.items():  # Adam turns rounding into steps where a gradient is nearly zero
        assert float((mine[name] - tensor_).abs().mean()) < 1e-4, name
    assert len(list((tmp_path / "rank-0/out/model").glob("model-0000?-of-00003.safetensors"))) == 3
    assert not (tmp_path / "rank-1/out").exists()
    assert len(list(tmp_path.glob("rank-[1-9]/tasks/**/*.safetensors"))) == {2: 1, 4: 2}[size]


@pytest.mark.parametrize(("policy", "tensor", "zero"), [("selective", 1, 1), ("full", 1, 2), ("selective", 2, 3)])
def test_activation_checkpointing_changes_nothing(
    tmp_path: Path, artifacts: Any, single: Any, policy: str, tensor: int, zero: int
) -> None:
    """Within FSDP2's blocks, whose weights come and go, and with the messages of tensor parallelism in them."""
    losses, outcome = train(
        tmp_path,
        2,
        config(dropout=0.2, parallel={"tensor": tensor, "zero": zero}, micro_batch_size=1, recompute=policy),
        artifacts,
    )
    assert outcome == "done"
    assert np.allclose(losses, single[0], atol=2e-5)


def test_a_run_is_resumed_by_another_number_of_processes(tmp_path: Path, artifacts: Any, single: Any) -> None:
    """4 -> 2 -> 4, with tensor parallel 2 -> 1 -> 2: the checkpoint of any is cut anew for the next."""
    told: list[float] = []
    for size, tensor, steps in ((4, 2, 3), (2, 1, 4), (4, 2, None)):
        made = config(dropout=0.2, parallel={"tensor": tensor}, micro_batch_size=1)
        losses, outcome = train(tmp_path, size, made, artifacts, stop=steps)
        told += losses
        if steps is not None:
            assert outcome.startswith(f"Preempted: stopped at step {len(told)} of 12")
            assert steps <= len(losses) <= steps + 1  # asked while a step is measured, it stops after the next one
    assert outcome == "done"
    assert np.allclose(told, single[0], atol=2e-5)


def test_a_lost_process_is_a_preemption_and_the_next_attempt_goes_on(
    tmp_path: Path, artifacts: Any, single: Any
) -> None:
    made = config(dropout=0.2)
    before, outcome = train(tmp_path, 2, made, artifacts, dies=7)
    assert outcome.startswith("Preempted: another process of this stage was lost")
    assert 6 <= len(before) <= 8
    after, outcome = train(tmp_path, 2, made, artifacts)
    assert outcome == "done"
    assert np.allclose(after, single[0][4:], atol=2e-5)  # from the checkpoint of step 4


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, artifacts: Any) -> None:
    _, outcome = train(tmp_path, 2, config(global_batch_size=3, tokens=12 * 3 * LENGTH), artifacts)
    assert outcome == "ConfigError: test.global_batch_size = 3 cannot be shared evenly by 2 parts: change either"
    _, outcome = train(tmp_path, 3, config(parallel={"tensor": 2}), artifacts)
    assert outcome == "ConfigError: test.parallel.tensor = 2 does not divide the 3 processes"


def test_topologies_that_cannot_be_are_refused_before_the_run() -> None:
    with pytest.raises(
        ValidationError, match=r"parallel\.tensor = 4 cannot share 4 query and 2 key-value heads evenly"
    ):
        config(parallel={"tensor": 4})
    with pytest.raises(ConfigError, match=r"^p\.parallel\.tensor = 2 does not divide the 3 processes$"):
        Pretrain.check_resources("p", config(parallel={"tensor": 2}), Resources(nproc_per_node=3))
    with pytest.raises(
        ConfigError, match=r"^p\.global_batch_size = 4 cannot be shared evenly by 8 parts: change either$"
    ):
        Pretrain.check_resources("p", config(), Resources(gpus=4, nodes=2))
    Pretrain.check_resources("p", config(), Resources(gpus=2, nodes=2))


def test_how_it_is_done_is_no_part_of_the_key() -> None:
    assert config(parallel={"tensor": 2}, recompute="selective").identity() == config().identity()
