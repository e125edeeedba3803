"""The rows of a training as they come: few enough to draw, sorted into panels, with what is not right in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from flows.live.curve_alarms import Alarm, CurveAlarms

MOST = 400
"""Rows kept: when there are more, every second one goes. Rows with a held-out value are counted for themselves, and
stay until there are so many of them.
"""
Row = dict[str, float]
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss", "_loss")),
    ("reward", ("reward", "accuracy", "reward_accuracy", "format")),
    ("KL against the start", ("kl",)),
    ("tokens of a response", ("response_length",)),
    ("learning rate", ("learning_rate",)),
    ("gradient norm", ("grad_norm",)),
    ("tokens a second", ("tokens_per_second",)),
    ("seconds a step", ("step_seconds",)),
    ("memory", ("memory_gib", "_memory_gib", "_bytes")),
    ("utilization", ("utilization", "_utilization", "mfu", "tflops_per_second")),
)
"""What is drawn in which order, by the names of metrics; one that begins with `_` is the end of a name."""


def panels_of(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The panels that rows have values for, each with the metrics in it."""
    names = dict.fromkeys(name for row in rows for name in row)
    panels: list[tuple[str, list[str]]] = []
    for label, patterns in PANELS:
        chosen = [n for n in names if any(n.endswith(p) if p[0] == "_" else n == p for p in patterns)]
        if chosen:
            panels.append((label, chosen))
    return panels


class _Thinned:
    """Every n-th row of many, n a power of two, `MOST` at most."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._every = self._count = 0

    def add(self, row: Row) -> None:
        self._count += 1
        if self._count % 2**self._every == 0:
            self.rows.append(row)
            if len(self.rows) > MOST:
                self._every += 1
                del self.rows[1::2]

    def cut(self, step: float) -> None:
        """Forget the rows from a step on."""
        while self.rows and self.rows[-1]["step"] >= step:
            self.rows.pop()


class Curves:
    """The curves of one training; `add` takes its rows in order. Not safe for several threads at once."""

    def __init__(self) -> None:
        self._plain, self._held_out = _Thinned(), _Thinned()
        self._alarms = CurveAlarms()
        self.last: Row = {}
        """The newest row."""

    @property
    def rows(self) -> list[Row]:
        """Those to draw, the newest among them."""
        rows = sorted([*self._plain.rows, *self._held_out.rows], key=lambda row: row["step"])
        return rows + ([self.last] if self.last and rows[-1:] != [self.last] else [])

    @property
    def alarms(self) -> list[Alarm]:
        """What is not right in them, in the order in which it began."""
        return self._alarms.alarms

    def add(self, step: int, values: Mapping[str, Any]) -> list[Alarm]:
        """Take a row; the alarms that begin with it. A training that resumed repeats steps: the later rows count."""
        numbers = {
            name: float(v) for name, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)
        }
        if self.last and step <= self.last["step"]:
            self._plain.cut(step)
            self._held_out.cut(step)
        self.last = {"step": step, **{name: value for name, value in numbers.items() if math.isfinite(value)}}
        (self._held_out if _held_out(self.last) else self._plain).add(self.last)
        return self._alarms.add(step, {name: value for name, value in numbers.items() if name != "tokens"})


def _held_out(row: Mapping[str, float]) -> bool:
    return any(name.startswith("val_") for name in row)
