"""`stages.lib.training.lost_process`: who waits for a process that died ends, whatever it waits in."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from stages.core.errors import InputError, Preempted
from stages.core.processes import host_identity, process_alive, process_identity
from stages.lib.training import lost_process
from stages.lib.training.lost_process import WHY, Watch
from stages.lib.training.meeting import Meeting, current, meeting
from stages.lib.training.parallel_dims import distributed
from tests.support.distributed import run_processes


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_process, "BEAT", timedelta(seconds=0.02))
    monkeypatch.setattr(lost_process, "LEAVING", timedelta(0))


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


class Ended:
    """In place of this process's end: what it was told to end for."""

    def __init__(self) -> None:
        self.why: list[bytes] = []
        self.told = threading.Event()

    def __call__(self, why: bytes) -> None:
        self.why.append(why)
        self.told.set()


def _place(store: Any, rank: int, process: str, host: str | None = None) -> None:
    store.set(f"training/process/{rank}", f'["{host or host_identity()}", "{process}"]')


def _waits_for_one_that_dies(ctx: Any) -> None:
    """Not in an exchange: as for a GPU."""
    ended = Ended()
    with meeting(), distributed(ctx, torch.device("cpu")):
        watch = current()._watch
        assert watch is not None
        watch._leave = ended
        torch.distributed.barrier()
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        ended.told.wait()
    ctx.metric(1, told=float(ended.why == [WHY]))


def test_whoever_waits_for_a_process_that_died_is_ended(tmp_path: Path) -> None:
    rows, outcome = run_processes(_waits_for_one_that_dies, tmp_path, 2, None, {})
    assert (outcome, [row["told"] for row in rows]) == ("done", [1.0])


def test_one_that_dies_is_missed_by_its_neighbour_which_tells_all(neighbour: subprocess.Popen[bytes]) -> None:
    store, near, far = HashStore(), Ended(), Ended()
    _place(store, 1, process_identity(neighbour.pid))
    _place(store, 2, "1:0", "another machine")
    watch = Watch(store, 0, 3, near)
    while not store.check(["training/process/0"]):
        threading.Event().wait(0.01)
    elsewhere = Watch(store, 2, 3, far)
    elsewhere._neighbours = dict  # type: ignore[method-assign]  # as seen from there: nobody is near
    assert not near.told.wait(0.2)
    assert not store.check([lost_process.DIED])
    neighbour.kill()
    near.told.wait()
    far.told.wait()
    assert (near.why, far.why) == ([WHY], [WHY])
    watch.end()
    elsewhere.end()


@pytest.mark.parametrize(("error", "missed"), [(InputError("damaged"), True), (Preempted("stopped"), False)])
def test_who_fails_is_not_waited_for_and_who_is_stopped_lets_the_others_save(error: Exception, missed: bool) -> None:
    store = HashStore()
    place = Meeting.__new__(Meeting)
    place._watch, place._thread, place._outcome = Watch(store, 0, 2), threading.Thread(), None
    place.tell(error)
    place._watch.end()
    assert store.check([lost_process.DIED]) == missed
    assert store.check(["training/left/0"])


def test_one_that_is_done_and_gone_is_not_missed(neighbour: subprocess.Popen[bytes]) -> None:
    store, identity = HashStore(), process_identity(neighbour.pid)
    watch = Watch(store, 0, 2, Ended())
    watch.end()
    neighbour.kill()
    neighbour.wait()
    assert not process_alive(identity)
    assert watch._died(1, identity)
    store.set("training/left/1", "")
    assert not watch._died(1, identity)


def test_only_processes_of_this_machine_are_looked_for_and_asked_for_once() -> None:
    """Another machine's numbers mean nothing here."""
    store = HashStore()
    watch = Watch(store, 0, 2, Ended())
    watch.end()
    assert watch._neighbours() is None  # the other has not said where it is
    _place(store, 1, "1:0", "another machine")
    assert watch._neighbours() == {}
    _place(store, 1, "1:0")
    assert watch._neighbours() == {1: "1:0"}
    assert watch._died(1, "1:0")  # this machine's process 1 began at another time
