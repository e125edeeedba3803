"""Rows as they come: bounded, sorted, and the newest always there."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from flows.live.curves import MOST, Curves, panels_of


@given(st.integers(1, 3_000), st.integers(2, 500))
def test_few_rows_are_kept_the_first_the_last_and_what_was_held_out(count: int, every: int) -> None:
    curves = Curves()
    for step in range(1, count + 1):
        held_out = {"val_loss": 1.0} if step % (every * 10) == 0 else {}
        curves.add(step, {"loss": 1.0 / step, "note": "text", "flag": True} | held_out)
    steps = [row["step"] for row in curves.rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == count
    assert len(steps) <= MOST + 1 + count // (every * 10)
    assert len(steps) >= min(count, MOST // 2)
    assert [s for s in range(1, count + 1) if s % (every * 10) == 0] == [
        r["step"] for r in curves.rows if "val_loss" in r
    ]


def test_many_held_out_values_are_bounded_and_leave_the_others_their_place() -> None:
    """Before, each one beyond `MOST` took half of the plain rows away: a month's curve had none left."""
    curves = Curves()
    for step in range(1, 20_001):
        curves.add(step, {"loss": 1.0} | ({"val_loss": 1.0} if step % 10 == 0 else {}))
    held_out = [row for row in curves.rows if "val_loss" in row]
    assert MOST // 2 <= len(held_out) <= MOST + 1
    assert MOST // 2 <= len(curves.rows) - len(held_out) <= MOST
    assert max(b["step"] - a["step"] for a, b in itertools.pairwise(curves.rows)) < 20_000 / MOST * 4, "evenly"


def test_a_training_that_resumed_draws_its_later_rows() -> None:
    curves = Curves()
    for step, loss in ((1, 5.0), (2, 4.0), (3, 9.0), (2, 3.5), (3, 3.0)):
        curves.add(step, {"loss": loss})
    assert [(row["step"], row["loss"]) for row in curves.rows] == [(1, 5.0), (2, 3.5), (3, 3.0)]


def test_what_is_not_finite_is_an_alarm_and_not_drawn() -> None:
    curves = Curves()
    (alarm,) = curves.add(1, {"loss": math.nan, "learning_rate": 0.1})
    assert (alarm.kind, curves.alarms) == ("not finite", [alarm])
    assert curves.rows == [{"step": 1, "learning_rate": 0.1}]


def test_metrics_are_sorted_into_panels() -> None:
    row = {"step": 1, "tokens": 2, "loss": 1.0, "val_loss": 1.0, "kl": 0.1, "peak_gpu_bytes": 5, "mfu": 0.4, "other": 1}
    assert panels_of([row]) == [
        ("loss", ["loss", "val_loss"]),
        ("KL against the start", ["kl"]),
        ("memory", ["peak_gpu_bytes"]),
        ("utilization", ["mfu"]),
    ]
