"""Engine `colossalai` for real: the launcher, torchrun, the engine's own Python, gloo, the store; stopped, and resumed
in another topology.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.settings import Settings
from stages.core.errors import ExitClass
from stages.core.ledger import Ledger
from stages.lib.modeling.hf_checkpoint import load_model
from stages.lib.training.parallel_sizes import ParallelSizes
from tests.support import colossal
from tests.support.limits import HANG
from tests.support.pretraining import LENGTH, config
from tests.support.torchrun import started as _start
from tests.support.torchrun import uploaded_inputs as _inputs

pytestmark = pytest.mark.slow  # starts two stages of two processes, 20 CPU seconds of imports each


def test_a_stopped_run_begins_anew_in_the_engines_python_and_goes_on_in_another_topology(
    settings: Settings, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOXIN_COLOSSALAI_PYTHON", str(colossal.python()))
    inputs = _inputs(ledger, tmp_path)
    made = config(
        engine="colossalai", dropout=0.1, tokens=60 * 4 * LENGTH, micro_batch_size=1, checkpoint_every=20,
        eval_windows=0,
        parallel={"zero": 2},
    )  # fmt: skip
    (handle, lease), steps = _start(settings, ledger, inputs, made), []
    for event in handle.events():
        if event["event"] == "metric":
            steps.append(event["step"])
            if len(steps) == 10:
                handle.stop(HANG)
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED
    ledger.release(lease)
    made = made.model_copy(update={"parallel": ParallelSizes(tensor=2, zero=0)})
    handle, _ = _start(settings, ledger, inputs, made)
    events = list(handle.events())
    assert handle.wait() == 0, events[-5:]
    found = ledger.manifest("7" * 64)
    assert found is not None
    assert found[0].attempt.resumed_from == steps[-1]
    assert found[0].stats["processes"] == 2
    rows = ledger.store.get(found[0].metrics_object or "")
    assert rows is not None
    told = [line.split(b'"step": ')[1].split(b",")[0] for line in rows[0].splitlines()]
    assert [int(step) for step in told] == list(range(1, 61))
    folder = tmp_path / "model"
    for entry in found[0].outputs["model"].files:
        ledger.store.download(entry.object, folder / entry.path, entry.sha256)
    assert load_model(folder).vocab_size == 400
