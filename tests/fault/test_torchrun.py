"""A stage of two processes for real: the launcher, torchrun, gloo, the store; stopped, and resumed by one process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from flows.settings import Settings
from stages.core.errors import ExitClass
from stages.core.ledger import Ledger
from stages.vlm.spec import TrainVlm, VlmConfig
from tests.support import vision
from tests.support.pretraining import LENGTH, config
from tests.support.probe_pipeline import wait_for
from tests.support.scenes import scenes
from tests.support.torchrun import started as _start
from tests.support.torchrun import uploaded_artifacts
from tests.support.torchrun import uploaded_inputs as _inputs


def test_two_processes_lose_one_and_one_process_ends_the_run(
    settings: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    inputs = _inputs(ledger, tmp_path)
    made = config(dropout=0.1, tokens=150 * 4 * LENGTH, checkpoint_every=10, eval_windows=0)
    (handle, lease), steps = _start(settings, ledger, inputs, made), []
    for event in handle.events():
        if event["event"] == "metric":
            steps.append(event["step"])
            if len(steps) == 15:
                wait_for(lambda: 10 in ledger.checkpoint_steps("7" * 64), "the first checkpoint")
                os.kill(_second_process(settings), signal.SIGKILL)
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED
    assert steps == list(range(1, len(steps) + 1))  # told once, by the first process
    ledger.release(lease)
    made = made.model_copy(update={"processes": 1})
    handle, _ = _start(settings, ledger, inputs, made)
    events = list(handle.events())
    assert handle.wait() == 0, events[-5:]
    found = ledger.manifest("7" * 64)
    assert found is not None
    assert found[0].attempt.resumed_from is not None
    assert found[0].attempt.resumed_from >= 10
    assert found[0].stats["steps"] == 150
    rows = ledger.store.get(found[0].metrics_object or "")
    assert rows is not None
    told = [line.split(b'"step": ')[1].split(b",")[0] for line in rows[0].splitlines()]
    assert [int(step) for step in told] == list(range(1, 151))  # no row lost, none doubled


def test_the_vlm_trains_in_two_processes(settings: Settings, ledger: Ledger, tmp_path: Path) -> None:
    """Gradients of several micro-batches are exchanged; one result, told once."""
    train, _ = scenes(tmp_path / "scenes", scenes=8)
    towers, seen = vision.features(tmp_path / "features", train)
    inputs = {
        "base": [vision.base_model(tmp_path / "base")],
        "conversations": [train],
        "towers": [towers],
        "features": [seen],
    }
    made = VlmConfig(
        epochs=1, global_batch_size=8, micro_batch_size=2, precision="fp32", max_length=256, threads=1, log_every=1
    )
    handle, _ = _start(settings, ledger, uploaded_artifacts(ledger, inputs), made, stage=TrainVlm)
    events = list(handle.events())
    assert handle.wait() == 0, events[-5:]
    found = ledger.manifest("7" * 64)
    assert found is not None
    assert found[0].stats["processes"] == 2
    steps = [event["step"] for event in events if event["event"] == "metric"]
    assert steps == list(range(1, int(found[0].stats["steps"]) + 1))
    assert len(steps) > 1


def _second_process(settings: Settings) -> int:
    """The stage's process of rank 1."""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            text = entry.read_bytes()
        except OSError:
            continue
        if b"\0RANK=1\0" in text and f"MOXIN_SCRATCH={settings.home / 'scratch'}".encode() in text:
            return int(entry.parent.name)
    raise AssertionError("there is no second process")
