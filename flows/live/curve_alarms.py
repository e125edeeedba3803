"""What in a curve is not right: numbers that are not finite, spikes, drops, a loss that rises or does not move, slow
steps; each with what to do.

Row by row, with what the last `WINDOW` rows of the same metric were: their median, and their median absolute deviation
(MAD) from it, which a few wild values do not move. `1.4826 MAD` is the standard deviation of a normal variable. The
numbers are in docs/decisions/live_curves.md.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WINDOW, LEAST = 40, 12
"""Rows that a value is compared with, and how many there must be."""
SIGMAS, HEAVY_SIGMAS = 8.0, 20.0
"""A value so many deviations off is an alarm. Norms of gradients and times of steps have long tails by nature."""
SHARE = 0.01
"""A deviation counts as this share of the median at least: a curve without noise has none."""
SLOW = 3.0
"""A step is slow when it takes so many times as long as usual, at least."""
HEAVY = ("grad_norm", "step_seconds", "tokens_per_second")
RISES = ("loss", "kl", "grad_norm", "step_seconds")
"""Metrics whose rise is trouble; one that ends in `_loss` belongs to them."""
FALLS = ("reward", "accuracy", "reward_accuracy", "reward_margin", "tokens_per_second")
"""Metrics whose fall is trouble."""
ADVICE = {
    "not finite": "the step's numbers overflowed: lower learning_rate or clip harder (grad_clip), and rerun: it resumes"
    " from the last checkpoint",
    "spike": "one or a few batches: it comes back by itself as a rule; if it does not within some hundred steps, stop,"
    " lower learning_rate and resume",
    "drop": "the policy may have collapsed: look at samples, response_length and kl; lower learning_rate or raise the"
    " weight of kl",
    "rising": "it diverges slowly: stop it (what was saved stays), lower learning_rate or lengthen warm-up, and rerun",
    "not learning": "the loss stands where it began: look at learning_rate, at the data and at what is masked",
    "slow": "machine, store or data loader, not the model: look at 'moxin logs' and at the machine's load",
}
"""What to do, by kind."""


@dataclass
class Alarm:
    """Something in a curve that somebody should look at. `until` grows as long as it lasts."""

    kind: str
    metric: str
    step: int
    until: int
    value: float
    """The worst one."""
    usual: float | None
    """The median that it was compared with."""

    @property
    def text(self) -> str:
        """One line for people."""
        steps = f"step {self.step:,}" + (f" to {self.until:,}" if self.until > self.step else "")
        beside = f", usual {self.usual:.4g}" if self.usual is not None else ""
        return f"{self.metric} {self.kind} at {steps}: {self.value:.4g}{beside}"

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ADVICE[self.kind]

    def row(self) -> dict[str, Any]:
        """As a JSON value: a number that is not finite as text."""
        values = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}
        return values | {"text": self.text, "advice": self.advice}


def _kind(name: str) -> str:
    """What it is called when this metric leaves its usual range; nothing: it may."""
    if name in ("step_seconds", "tokens_per_second"):
        return "slow"
    return "spike" if name in RISES or name.endswith("_loss") else "drop" if name in FALLS else ""


def _middle(sorted_values: Sequence[float]) -> float:
    """The median, without sorting once more."""
    half = len(sorted_values) // 2
    return sorted_values[half] if len(sorted_values) % 2 else (sorted_values[half - 1] + sorted_values[half]) / 2


class _Window:
    """The last values of a metric, by time and by size."""

    def __init__(self) -> None:
        self._by_time: deque[float] = deque()
        self._by_size: list[float] = []

    def __len__(self) -> int:
        return len(self._by_time)

    def add(self, value: float) -> None:
        self._by_time.append(value)
        insort(self._by_size, value)
        if len(self._by_time) > WINDOW:
            del self._by_size[bisect_left(self._by_size, self._by_time.popleft())]

    @property
    def middle(self) -> float:
        return _middle(self._by_size)

    def deviation(self) -> float:
        centre = self.middle
        spread = 1.4826 * _middle(sorted([abs(value - centre) for value in self._by_size]))
        return max(spread, SHARE * abs(centre))


class CurveAlarms:
    """Takes the rows of one training in order; `alarms` has all so far."""

    def __init__(self) -> None:
        self.alarms: list[Alarm] = []
        self._windows: dict[str, _Window] = {}
        self._lasting: dict[tuple[str, str], Alarm] = {}
        self._begun: tuple[float, float] | None = None
        """Median and deviation of the first window of the loss."""
        self._best = math.inf
        self._rows_of_loss = 0

    def add(self, step: int, values: Mapping[str, Any]) -> list[Alarm]:
        """Take a row; the alarms that begin with it."""
        begins: list[Alarm] = []
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                begins += self._tell("not finite", name, step, value, None)
                continue
            self._end("not finite", name)
            begins += self._against_window(name, step, float(value))
        if not any(name in values for name in ("reward", "accuracy")):  # a policy's loss is about zero by nature
            begins += self._course(step)
        return begins

    def _against_window(self, name: str, step: int, value: float) -> list[Alarm]:
        kind = _kind(name)
        if not kind:
            return []
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = _Window()
        begins: list[Alarm] = []
        if len(window) >= LEAST:
            usual = window.middle
            off = value - usual if name in RISES or name.endswith("_loss") else usual - value
            sigmas = HEAVY_SIGMAS if name in HEAVY else SIGMAS
            ratio = value / usual if usual else math.inf
            # at least that far off, before the deviation is asked for: it is dear, and a training has a million rows
            far = off > sigmas * SHARE * abs(usual) and off > sigmas * window.deviation()
            if far and (kind != "slow" or max(ratio, 1 / ratio if ratio else math.inf) > SLOW):
                begins = self._tell(kind, name, step, value, usual)
            else:
                self._end(kind, name)
        window.add(value)
        return begins

    def _course(self, step: int) -> list[Alarm]:
        """Where the loss as a whole goes: compared are whole windows that do not overlap."""
        window = self._windows.get("loss")
        if window is None or len(window) < WINDOW:
            return []
        self._rows_of_loss += 1
        centre, deviation = window.middle, window.deviation()
        if self._begun is None:
            self._begun = (centre, deviation)
        begins: list[Alarm] = []
        if centre > self._best + 3 * deviation:
            begins += self._tell("rising", "loss", step, centre, self._best)
        else:
            self._end("rising", "loss")
        self._best = min(self._best, centre)
        first, spread = self._begun
        error = 1.25 * math.hypot(spread, deviation) / math.sqrt(WINDOW)  # of a difference of two medians
        if self._rows_of_loss > WINDOW and abs(first - centre) < 2 * error and self._best > first - 3 * error:
            begins += self._tell("not learning", "loss", step, centre, first)
        else:
            self._end("not learning", "loss")
        return begins

    def _tell(self, kind: str, name: str, step: int, value: float, usual: float | None) -> list[Alarm]:
        if alarm := self._lasting.get((kind, name)):
            alarm.until = step
            if usual is None or abs(value - usual) > abs(alarm.value - (alarm.usual or 0.0)):
                alarm.value = value
            return []
        alarm = self._lasting[kind, name] = Alarm(kind, name, step, step, value, usual)
        self.alarms.append(alarm)
        return [alarm]

    def _end(self, kind: str, name: str) -> None:
        self._lasting.pop((kind, name), None)


def alarms_of(rows: Iterable[Mapping[str, Any]]) -> list[Alarm]:
    """The alarms of metric rows, each with its `step`."""
    watcher = CurveAlarms()
    for row in rows:
        watcher.add(int(row["step"]), {name: value for name, value in row.items() if name not in ("step", "tokens")})
    return watcher.alarms
