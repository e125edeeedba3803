"""`stages.lib.training.ahead`: steps are ready before they are asked for, and what failed is told at its step."""

from __future__ import annotations

import threading

import pytest

from stages.core.errors import InfraError
from stages.core.store_errors import Damaged, Unavailable
from stages.lib.training import ahead as module
from stages.lib.training.ahead import Ahead


def test_any_step_can_be_taken_and_the_next_ones_are_ready() -> None:
    steps: list[int] = []
    done = threading.Event()

    def read(step: int) -> tuple[int, int]:
        steps.append(step)
        if step in (4, 9):
            done.set()
        return step * 10, 100

    ahead = Ahead(read, 10, 250)
    assert [ahead.take(step) for step in (0, 1)] == [0, 10]
    assert done.wait(10), "250 bytes are three steps: up to step 4 lie ready"
    assert steps == [0, 1, 2, 3, 4]
    done.clear()
    assert [ahead.take(step) for step in (7, 8, 9)] == [70, 80, 90]
    assert done.wait(10)
    assert steps[-3:] == [7, 8, 9], "nothing beyond the last step"
    assert ahead.take(9) == 90, "unless it is asked for again"
    ahead.close()


def test_damage_is_told_at_its_step_and_not_before() -> None:
    def read(step: int) -> tuple[int, int]:
        if step == 2:
            raise Damaged("window 9 is damaged", "objects/x")
        return step, 1

    ahead = Ahead(read, 10, 100)
    assert [ahead.take(step) for step in (0, 1)] == [0, 1]
    for _ in range(2):
        with pytest.raises(Damaged, match="window 9"):
            ahead.take(2)


def test_a_store_that_is_away_is_asked_again_while_steps_lie_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    away, asked = threading.Event(), threading.Semaphore(0)
    away.set()

    def read(step: int) -> tuple[int, int]:
        if step >= 2 and away.is_set():
            asked.release()
            raise Unavailable("the store cannot be reached")
        return step, 1

    ahead = Ahead(read, 10, 100)
    assert ahead.take(0) == 0
    for _ in range(3):
        assert asked.acquire(timeout=10), "it is asked again and again, and nobody is told"
    away.clear()
    assert [ahead.take(step) for step in range(1, 10)] == list(range(1, 10))
    away.set()
    with pytest.raises(Unavailable) as told:
        ahead.take(5)
    assert isinstance(told.value, InfraError), "who waits for it is told, with its class"
    away.clear()
    assert ahead.take(5) == 5, "and may ask again"


def test_a_reader_that_was_left_reads_no_more() -> None:
    seen: list[int] = []

    def read(step: int) -> tuple[int, int]:
        seen.append(step)
        return step, 1

    ahead = Ahead(read, 1000, 2)
    ahead.take(0)
    ahead.close()
    ahead.take(500)
    ahead.close()
    before = list(seen)
    threading.Event().wait(0.05)
    assert len(seen) <= len(before) + 1
    assert max(seen) <= 503
