"""What a node of 34 days leaves in Prefect's database is bounded, and a node of minutes shows all."""

from __future__ import annotations

import itertools

import pytest

from flows import pacing
from flows.pacing import (
    LINES,
    METRIC_SECONDS,
    PICTURE_LONGEST,
    PICTURE_SECONDS,
    PICTURE_SHARE,
    PROGRESS_SECONDS,
    Budget,
    Spacing,
)

DAYS_34 = 34 * 86_400


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr(pacing.time, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize("least", [METRIC_SECONDS, PROGRESS_SECONDS])
def test_values_of_weeks_pass_ten_thousand_times_and_those_of_a_minute_as_before(
    clock: list[float], least: float
) -> None:
    spacing, passed = Spacing(least), list[float]()
    for number in range(int(DAYS_34 / 2.6)):  # a step of 7b
        clock[0] = 1000.0 + 2.6 * number
        if spacing.due():
            passed.append(clock[0])
    assert sum(at <= 1100 for at in passed) == 39, "every step of the first 100 s"
    assert len(passed) < 11_000
    assert max(b - a for a, b in itertools.pairwise(passed)) < pacing.LONGEST + 2.7


def test_pictures_of_weeks_pass_a_thousand_times_and_two_hundred_times_in_a_late_week(clock: list[float]) -> None:
    """The server keeps each for a week: with the spacing of lines, they were two thousand in a week, 400 MB."""
    spacing, passed = Spacing(PICTURE_SECONDS, PICTURE_SHARE, PICTURE_LONGEST), list[float]()
    for number in range(int(DAYS_34 / 2.6)):
        clock[0] = 1000.0 + 2.6 * number
        if spacing.due():
            passed.append(clock[0] - 1000.0)
    assert 19 <= sum(at < 600 for at in passed) <= 21, "every 30 s of the first ten minutes"
    assert len(passed) < 1_100
    assert sum(DAYS_34 - at < 7 * 86_400 for at in passed) <= 169


def test_lines_are_shown_until_there_are_too_many(clock: list[float]) -> None:
    budget = Budget()
    assert all(budget.takes() for _ in range(LINES))
    assert not budget.takes()
    clock[0] += pacing.SECONDS_A_LINE
    assert [budget.takes(), budget.takes()] == [True, False]
    assert budget.dropped == 2
    shown = 0
    for _ in range(100_000):
        clock[0] += 29.376  # 34 days
        shown += budget.takes()
    assert shown <= LINES + DAYS_34 / pacing.SECONDS_A_LINE
