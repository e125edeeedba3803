"""`stages.core.node_staging`: one process of a machine works, the others wait for it and end as it ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import ExitClass, InputError, PeerFailed
from stages.core.node_staging import once

FORK = multiprocessing.get_context("fork")


def _work_together(folder: Path, work: Callable[[], Any], count: int = 4) -> list[Any]:
    """What `once` gave in each of several processes that begin together."""
    results, barrier = FORK.Queue(), FORK.Barrier(count)

    def process() -> None:
        barrier.wait()
        try:
            results.put(once(folder, work))
        except PeerFailed as error:
            results.put(("peer", error.exit_class, str(error)))
        except InputError as error:
            results.put(("own", error.exit_class, str(error)))

    started = [FORK.Process(target=process) for _ in range(count)]
    for one in started:
        one.start()
    found = [results.get() for _ in started]
    for one in started:
        one.join()
    return found


def _note(folder: Path) -> dict[str, int]:
    with open(folder / "calls", "a") as calls:
        calls.write("x")
    return {"made": 1}


def test_one_process_works_and_all_have_its_result(tmp_path: Path) -> None:
    assert _work_together(tmp_path, lambda: _note(tmp_path)) == [{"made": 1}] * 4
    assert (tmp_path / "calls").read_text() == "x"


def test_all_end_with_the_reason_of_the_one_that_failed(tmp_path: Path) -> None:
    def work() -> None:
        _note(tmp_path)
        raise InputError("the store has other bytes")

    found = _work_together(tmp_path, work)
    assert sorted(row[0] for row in found) == ["own", "peer", "peer", "peer"]
    assert {row[1:] for row in found} == {(ExitClass.INPUT, "the store has other bytes")}
    assert (tmp_path / "calls").read_text() == "x"


def test_what_a_killed_process_left_is_done_by_the_next(tmp_path: Path) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=once, args=(tmp_path, die))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert once(tmp_path, lambda: _note(tmp_path)) == {"made": 1}


def test_an_error_of_a_program_stays_one(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        once(tmp_path, lambda: {}["nothing"])
    with pytest.raises(PeerFailed, match="KeyError: 'nothing'") as caught:
        once(tmp_path, lambda: 1)
    assert caught.value.exit_class is ExitClass.BUG
