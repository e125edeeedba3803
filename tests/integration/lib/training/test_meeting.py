"""`stages.lib.training.meeting`: processes that come late, fail or die before all are ready."""

from __future__ import annotations

import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core.errors import ExitClass, InputError, PeerFailed, Preempted
from stages.lib.training import meeting as module
from stages.lib.training.meeting import LOST, current, meeting
from stages.lib.training.parallel_dims import distributed
from tests.support.distributed import run_processes


def _fails_while_the_others_wait(ctx: Any) -> None:
    try:
        with meeting():
            if os.environ["RANK"] == ctx.config:
                raise InputError("the corpus is damaged")
            with distributed(ctx, torch.device("cpu")):
                raise AssertionError("they never meet")
    except PeerFailed as error:
        ctx.metric(1, told=float((error.exit_class, str(error)) == (ExitClass.INPUT, "the corpus is damaged")))
    except InputError:
        pass


def test_the_others_end_with_the_reason_of_one_that_fails(tmp_path: Path) -> None:
    rows, outcome = run_processes(_fails_while_the_others_wait, tmp_path, 3, "2", {})
    assert (outcome, [row["told"] for row in rows]) == ("done", [1.0])


def _is_stopped_after_another_failed(ctx: Any) -> None:
    with meeting():
        if os.environ["RANK"] == "1":
            raise InputError("the corpus is damaged")
        current()._thread.join()  # heard of, while it stages its inputs in
        raise Preempted("stopped on request")


def test_who_is_stopped_because_another_failed_ends_with_its_reason(tmp_path: Path) -> None:
    """torchrun stops the processes of a machine when one of them fails: the first, whose word counts, was preempted by
    nobody.
    """
    _, outcome = run_processes(_is_stopped_after_another_failed, tmp_path, 2, None, {})
    assert outcome == "PeerFailed: the corpus is damaged"


def _is_stopped_while_it_waits(ctx: Any) -> None:
    with meeting():
        if os.environ["RANK"] == "0":
            while not current().store.add("meeting/alive/1", 0):
                threading.Event().wait(0.05)
            with distributed(ctx, torch.device("cpu")):
                raise AssertionError("they never meet")
        current()._thread.join()  # until it hears of the other's end


def test_who_waits_for_the_others_can_be_stopped(tmp_path: Path) -> None:
    _, outcome = run_processes(_is_stopped_while_it_waits, tmp_path, 2, None, {}, stop=0)
    assert outcome == "Preempted: stopped on request"


def _is_stopped_before_it_has_joined(ctx: Any) -> None:
    def stop(*arguments: Any) -> None:
        raise Preempted("stopped on request")

    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2"}
    signal.signal(signal.SIGTERM, stop)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with meeting():
        raise AssertionError("nobody holds a meeting place")


def test_who_finds_no_meeting_place_can_be_stopped(tmp_path: Path) -> None:
    _, outcome = run_processes(_is_stopped_before_it_has_joined, tmp_path, 1, None, {})
    assert outcome == "Preempted: stopped on request"


def _never_comes(ctx: Any) -> None:
    if os.environ["RANK"] == "0":
        with meeting(), distributed(ctx, torch.device("cpu")):
            raise AssertionError("they never meet")


def test_a_process_that_never_comes_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JOINING", timedelta(seconds=1))
    _, outcome = run_processes(_never_comes, tmp_path, 2, None, {})
    assert outcome == f"PeerFailed: process 1 gives no sign of life: {LOST}"


def _dies_while_the_others_wait(ctx: Any) -> None:
    with meeting():
        if os.environ["RANK"] == "1":
            os._exit(1)
        with distributed(ctx, torch.device("cpu")):
            raise AssertionError("they never meet")


def test_a_process_that_dies_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing: its signs of life end. Those of one that stages its inputs for long do not."""
    monkeypatch.setattr(module, "BEAT", timedelta(seconds=0.2))
    monkeypatch.setattr(module, "SILENCE", timedelta(seconds=3))
    _, outcome = run_processes(_dies_while_the_others_wait, tmp_path, 2, None, {})
    assert outcome == f"PeerFailed: process 1 gives no sign of life: {LOST}"


def _is_slow(ctx: Any) -> None:
    with meeting():
        if os.environ["RANK"] == "1":
            threading.Event().wait(1.5 * module.SILENCE.total_seconds())
        with distributed(ctx, torch.device("cpu")) as dims:
            ctx.metric(1, total=dims.all_reduce(dims.rank + 1.0)[0])


def test_a_process_that_stages_for_long_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", timedelta(seconds=0.2))
    monkeypatch.setattr(module, "SILENCE", timedelta(seconds=3))
    rows, outcome = run_processes(_is_slow, tmp_path, 2, None, {})
    assert (outcome, [row["total"] for row in rows]) == ("done", [3.0])


def test_one_process_meets_nobody() -> None:
    with meeting(), pytest.raises(AssertionError):
        current()
