"""Alarms of curves: what is wrong is told, what is noise is not."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.live.curve_alarms import ADVICE, LEAST, SHARE, WINDOW, CurveAlarms, _Window, alarms_of


def curve(rows: int = 400, noise: float = 0.02, seed: int = 1) -> list[dict[str, Any]]:
    """A loss that falls as losses do, with noise."""
    chance = random.Random(seed)
    return [
        {
            "step": step,
            "loss": 3 + 6 / math.sqrt(step) + chance.gauss(0, noise),
            "grad_norm": chance.lognormvariate(0, 0.4),
        }
        for step in range(1, rows + 1)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_curve_raises_no_alarm(seed: int) -> None:
    assert alarms_of(curve(2_000, seed=seed)) == []


def test_a_spike_is_one_alarm_with_its_worst_value() -> None:
    rows = curve()
    for offset, height in enumerate((1.0, 3.0, 0.8)):
        rows[300 + offset]["loss"] += height
    (alarm,) = alarms_of(rows)
    assert (alarm.kind, alarm.metric, alarm.step, alarm.until) == ("spike", "loss", 301, 303)
    assert alarm.value == rows[301]["loss"]
    assert alarm.usual == pytest.approx(3 + 6 / math.sqrt(280), abs=0.05)
    assert "loss spike at step 301 to 303" in alarm.text
    assert alarm.advice == ADVICE["spike"]


def test_numbers_that_are_not_finite_are_told_from_the_first_row_on() -> None:
    rows = [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 5.0}, {"step": 3, "grad_norm": math.inf}]
    alarms = alarms_of(rows)
    assert [(a.kind, a.metric, a.step) for a in alarms] == [("not finite", "loss", 1), ("not finite", "grad_norm", 3)]
    assert alarms[0].row()["value"] == "nan"  # JSON has no such number


def test_a_loss_that_rises_and_one_that_never_moves() -> None:
    chance = random.Random(2)
    rises = curve(200) + [{"step": s, "loss": 3.4 + (s - 200) * 0.004 + chance.gauss(0, 0.02)} for s in range(201, 500)]
    assert [a.kind for a in alarms_of(rises)] == ["rising"]
    stands = [{"step": s, "loss": 10.8 + chance.gauss(0, 0.02)} for s in range(1, 400)]
    assert {a.kind for a in alarms_of(stands)} == {"not learning"}
    policy = [row | {"loss": row["loss"] - 10.8, "reward": 0.5} for row in stands]
    assert alarms_of(policy) == []  # a policy's loss says nothing


def test_a_reward_that_collapses_and_steps_that_take_long() -> None:
    chance = random.Random(3)
    rows = [
        {"step": s, "reward": 0.6 + chance.gauss(0, 0.02), "step_seconds": 1.0 + chance.gauss(0, 0.01)}
        for s in range(1, 100)
    ]
    rows[60] |= {"reward": 0.0, "step_seconds": 9.0}
    rows[80] |= {"step_seconds": 1.5}  # not three times as long
    assert [(a.kind, a.step) for a in alarms_of(rows)] == [("drop", 61), ("slow", 61)]


@given(st.integers(LEAST, 3 * WINDOW), st.floats(0.1, 10))
def test_one_wild_value_does_not_hide_the_next(at: int, height: float) -> None:
    """Median and MAD: the second of two spikes is told as the first is."""
    rows = [{"step": s, "loss": 2.0} for s in range(1, at + 8)]
    rows[at]["loss"] += height + 0.2
    rows[at + 4]["loss"] += height + 0.2
    assert [a.step for a in alarms_of(rows) if a.kind == "spike"] == [at + 1, at + 5]


def test_an_alarm_is_told_when_it_begins() -> None:
    watcher = CurveAlarms()
    told = [watcher.add(step, {"loss": 2.0 if step != 30 else 9.0}) for step in range(1, 40)]
    assert [step for step, alarms in enumerate(told, 1) if alarms] == [30]
    assert watcher.add(41, {"loss": True, "note": "text"}) == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3 * WINDOW))
def test_a_windows_median_and_deviation_are_those_of_its_last_values(values: list[float]) -> None:
    window = _Window()
    for value in values:
        window.add(value)
    last = values[-WINDOW:]
    centre = statistics.median(last)
    assert window.middle == centre
    spread = 1.4826 * statistics.median([abs(value - centre) for value in last])
    assert window.deviation() == max(spread, SHARE * abs(centre))
