"""A sweep as one flow, over a real Prefect server: a point that fails keeps no other from its turn, and an interrupted
sweep goes on with what is missing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.experiments import points
from flows.settings import Settings
from stages.core.ledger import Ledger
from stages.core.store import Store
from tests.support.prefect_runs import Run, prefect_server, task_states

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(store_server: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with prefect_server(tmp_path_factory.mktemp("prefect"), store_server) as settings:
        yield settings


def ran(run: Run) -> list[str]:
    """The nodes that were made, in order."""
    return [node for node, event in run.events if event.get("state") == "done"]


def trained(ledger: Ledger, names: list[str]) -> list[bool]:
    """Whether each experiment has a second training."""
    return [ledger.node(f"test@{name}", "train_2") is not None for name in names]


def test_a_point_that_fails_is_told_and_the_others_are_made(
    server: Settings, store: Store, ledger: Ledger, tmp_path: Path
) -> None:
    listed = ["train_2.learning_rate=0.1", "source_a.act=input source_a.text=other", "train_2.learning_rate=0.3"]
    names = [point.name for point in points.points("s", [], listed)]
    run = Run(server, tmp_path, store.address.prefix, name="s", points=listed)
    end = run.end()
    assert end["type"] == "FAILED"
    assert end["message"] == f"{names[1]}: source_a failed (input): asked for input"
    assert ran(run).count("train_1") == 1, "what points share is made once"
    assert ran(run).count("train_2") == 2
    assert trained(ledger, names) == [True, False, True]
    states = task_states(server, end["url"].rpartition("/")[2])
    assert {states[name] for name in ("source_a", "shards")} <= {"Completed", "Cached"}


def test_an_interrupted_sweep_goes_on_with_what_is_missing(
    server: Settings, store: Store, ledger: Ledger, tmp_path: Path
) -> None:
    slow = "train_2.step_seconds=0.3"
    listed = [f"train_2.learning_rate={rate} train_2.steps=20" for rate in (0.1, 0.2)]
    names = [point.name for point in points.points("s", [], listed)]
    run = Run(server, tmp_path, store.address.prefix, slow, name="s", points=listed)
    run.until("train_2", "done")
    run.until("train_2", "running")
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end()["type"] == "CANCELLED"
    assert trained(ledger, names) == [True, False]
    again = Run(server, tmp_path, store.address.prefix, slow, name="s", points=listed)
    end = again.end()
    assert (end["type"], end["message"]) == (
        "COMPLETED",
        "2 points: compare them with 'moxin compare'",
    )
    assert ran(again) == ["train_2"], "of the first point nothing, of the second what was missing"
    assert trained(ledger, names) == [True, True]
