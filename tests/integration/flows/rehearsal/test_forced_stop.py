"""A training of a rehearsal is stopped after its first checkpoint by its launcher, and has to go on from there. Real
processes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flows.launch.process import ProcessLauncher
from flows.rehearsal.observers import Stops
from flows.settings import Settings
from tests.support.bench import PIPE, Bench
from tests.support.probe_pipeline import python_with_probes, run_nodes


def test_however_fast_its_steps_are_it_is_stopped_and_goes_on(
    finished: Bench, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", python_with_probes(tmp_path))
    run = finished.begin("train_2.steps=9", "retries=1", launcher=ProcessLauncher(settings))
    run.stops = frozenset({"train_2"})
    stops = Stops(run, {"train_2"})
    run.observers.append(stops)
    result = run_nodes(run, PIPE)["train_2"]
    assert stops.stopped == {"train_2": 2}
    assert result.attempt.resumed_from == 2
    assert result.stats["last_step"] == 9
