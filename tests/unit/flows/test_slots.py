"""One node at a time on the GPUs of a machine, whatever runs ask for them; a place of the run is not held meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from flows import slots
from flows.slots import Slots
from stages.core.errors import Preempted
from stages.core.resources import Resources
from tests.support.limits import HANG

GPUS, NONE = Resources(gpus=1), Resources()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "LOOK_SECONDS", 0.01)


class Told:
    """What nodes were told."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, dict[str, Any]]] = []
        self.some = threading.Event()

    def __call__(self, node: str, event: str, **fields: Any) -> None:
        self.rows.append((node, event, fields))
        self.some.set()


def test_two_runs_share_the_gpus_one_after_the_other(tmp_path: Path) -> None:
    told, order, inside = Told(), [], threading.Event()
    first, second = (Slots(2, tmp_path, threading.Event(), told) for _ in range(2))

    def other() -> None:
        with second.taken("evaluate", "docker", GPUS):
            order.append("evaluate")
            inside.set()

    thread = threading.Thread(target=other, daemon=True)
    with first.taken("pretrain", "process", GPUS):
        thread.start()
        assert told.some.wait(HANG)
        for _ in range(2):  # the waiting node holds no place of its run
            with second.taken("dedup", "docker", NONE), second.taken("other", "docker", NONE):
                order.append("cpu")
        with second.taken("far", "slurm", GPUS):  # the cluster shares out its own
            order.append("slurm")
        assert not inside.is_set()
    assert inside.wait(HANG)
    thread.join(HANG)
    assert order == ["cpu", "cpu", "slurm", "evaluate"]
    message = "it waits for the GPUs of this machine, which another node has"
    assert told.rows == [("evaluate", "log", {"level": "info", "message": message})], "said once"


def test_a_run_that_stops_does_not_wait_for_gpus(tmp_path: Path) -> None:
    stopping = threading.Event()
    holder, waiting = Slots(1, tmp_path, threading.Event(), Told()), Slots(1, tmp_path, stopping, Told())
    with holder.taken("pretrain", "docker", GPUS):
        stopping.set()
        with pytest.raises(Preempted, match="evaluate: the run is stopping"), waiting.taken("evaluate", "docker", GPUS):
            raise AssertionError("it got the GPUs")
    with waiting.taken("evaluate", "docker", GPUS):
        pass


def test_a_run_has_as_many_places_as_its_profile_says(tmp_path: Path) -> None:
    places, inside = Slots(1, tmp_path, threading.Event(), Told()), threading.Event()

    def other() -> None:
        with places.taken("b", "process", NONE):
            inside.set()

    with places.taken("a", "process", NONE):
        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        assert not inside.wait(0.1)
    assert inside.wait(HANG)
    thread.join(HANG)
