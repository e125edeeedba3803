"""Steps that would hurt a training: which they are, and what is done about them. Light: a stage's configuration has it.

A step is trouble when its loss or its gradient norm is no finite number, or, where `SpikePolicy.deviations` is set, a
spike: far above the median of the steps before. Its update is left out. When several in a row are, the training goes
back to where it was `before` steps earlier, and goes on with other data; when that helps nothing, it ends.

All that is decided follows from the losses and norms, which every process has alike, and lies in the checkpoint, so a
run that is made again or resumed decides the same. It does not depend on which checkpoints there are: one from before
the place to go back to leads there by the same steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

NORMAL = 1.4826
"""Standard deviations in a median absolute deviation, of normally distributed values."""
LEAST_DEVIATION = 1e-3
"""Of a value, as a share of it: steps that are nearly equal make no spike of the next one."""
MOST_EVENTS = 100
"""That are kept for the manifest, the newest; all are counted."""


class SkipPolicy(BaseModel):
    """Which steps are left out, because their loss or gradient norm is no number, or far above those before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deviations: float = Field(
        default=0.0,
        ge=0,
        description=(
            "a loss, or the logarithm of a gradient norm, so many standard deviations above the median of the last"
            " `window` steps is a spike (OLMo-core skips at 6); 0: only what is no finite number is trouble"
        ),
    )
    window: int = Field(
        default=128, ge=8, description="steps that a spike is told from, half as many at least (OLMo-core: 128)"
    )
    skips: int = Field(
        default=4,
        ge=0,
        description="batches in a row whose update is left out, before the training goes back, or ends as diverged",
    )

    def keyed(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an identity, without the policy where it is the default: a training that met no number that is
        not finite is what it was before there was a policy, and one that met any gave no result then.
        """
        return {name: value for name, value in identity.items() if name != "spikes" or self != type(self)()}


class SpikePolicy(SkipPolicy):
    """And when, and how far, a training goes back from them."""

    tries: int = Field(
        default=2,
        ge=0,
        description=(
            "times in a row that it goes back to a checkpoint, or to the beginning, and takes other data, before it"
            " ends as diverged"
        ),
    )
    before: int = Field(
        default=100, ge=0, description="steps before the trouble that it goes back to (PaLM: about 100)"
    )
    after: int = Field(
        default=100,
        ge=0,
        description=(
            "batches after the trouble that are left out with the `before` batches ahead of it (PaLM: 200 to 500 in"
            " all)"
        ),
    )

    @property
    def reach(self) -> int:
        """Steps that a training may go back from its newest checkpoint."""
        return self.tries * self.before


class LeftOut(NamedTuple):
    """Batches that no step takes, because the training went back."""

    step: int
    """Steps that were done where it went on."""
    first: int
    last: int
    """Batches [first, last), counted from 0."""
    trouble: int
    """The step, counted from 1, that it went back from."""


class SpikeGuard:
    """Judges the steps of one training. Every process has one, and they agree."""

    def __init__(self, policy: SkipPolicy) -> None:
        """One that has no way back is exhausted when its skips are."""
        self._policy = policy if isinstance(policy, SpikePolicy) else SpikePolicy(**policy.model_dump(), tries=0)
        self._losses: deque[float] = deque(maxlen=policy.window)
        self._norms: deque[float] = deque(maxlen=policy.window)
        self.streak = 0
        """Steps in a row, up to the last one, whose update was left out."""
        self.finite = True
        """Whether the loss and the norm of the last step were."""
        self.counts = {"not_finite": 0, "spike": 0, "rolled_back": 0}
        self.events: list[dict[str, Any]] = []
        self._tries = 0
        self._left_out: list[LeftOut] = []

    # --- judging --------------------------------------------------------------------------------------------------

    def trouble(self, loss: float, norm: float) -> dict[str, float]:
        """What is wrong with a step, for its row: {} nothing; else `not_finite`, or `spike`: in deviations."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return {"not_finite": 1.0}
        if self._policy.deviations and len(self._losses) >= self._policy.window // 2:
            most = max(_deviations(loss, self._losses), _deviations(_log(norm), self._norms))
            if most > self._policy.deviations:
                return {"spike": round(most, 3)}
        return {}

    def accept(self, loss: float, norm: float) -> None:
        """A step without trouble."""
        self._losses.append(loss)
        self._norms.append(_log(norm))
        self.streak, self.finite = 0, True

    def skip(self, step: int, what: Mapping[str, float], loss: float, norm: float) -> str:
        """Step `step`, counted from 1, changes nothing. Returns the line that says so."""
        self.streak += 1
        self.finite = "not_finite" not in what
        for name in what:
            self.counts[name] += 1
        self._tell({"step": step, "event": "skipped", **what})
        kind = "is a spike" if self.finite else "is no finite number"
        return f"step {step}: loss {loss:.6g} or gradient norm {norm:.6g} {kind}: it changes nothing"

    @property
    def exhausted(self) -> bool:
        """Whether leaving out updates did not end the trouble."""
        return self.streak > self._policy.skips

    @staticmethod
    def wrong(loss: float, norm: float) -> str:
        """What is wrong with the last of too many steps, in words."""
        numbers = {"loss": loss, "gradient norm": norm}
        name = next((name for name, value in numbers.items() if not math.isfinite(value)), None)
        return "the loss spikes" if name is None else f"the {name} is {numbers[name]}"

    # --- going back -----------------------------------------------------------------------------------------------

    def batch(self, done: int) -> int:
        """The batch that the step after `done` steps takes, counted from 0."""
        number = done
        for left_out in self._left_out:
            if number >= left_out.first:
                number += left_out.last - left_out.first
        return number

    def way_back(self, done: int) -> LeftOut | None:
        """What to leave out, where `done` steps were done and the last `streak` of them were trouble; None: it was
        tried often enough.
        """
        trouble = done - self.streak
        before = self._left_out[-1].trouble if self._left_out else -math.inf
        tries = self._tries if trouble < before + self._policy.window else 0
        if tries >= self._policy.tries:
            return None
        step = max(0, trouble - self._policy.before)
        return LeftOut(step, self.batch(step), self.batch(trouble) + 1 + self._policy.after, trouble + 1)

    def go_back(self, left_out: LeftOut, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state at or before `left_out.step`, without these batches."""
        before = self._left_out[-1].trouble if self._left_out else -math.inf
        tries = self._tries + 1 if left_out.trouble - 1 < before + self._policy.window else 1
        earlier, counts, why = self._left_out, self.counts, "spike" if self.finite else "not_finite"
        backs = [row for row in self.events if row["event"] == "rolled_back"]
        self.restore(state)  # the steps since are made again, and judged again
        skipped = [row for row in self.events if row["event"] == "skipped"]
        self.events = [*skipped, *backs]
        self.counts["rolled_back"] = counts["rolled_back"] + 1
        self._tries = tries
        self._left_out = [row for row in earlier if row.first < left_out.first] + [left_out]
        batches = left_out.last - left_out.first
        row = {"step": left_out.step + 1, "event": "rolled_back", "from": left_out.trouble, "left_out": batches}
        self._tell(row | {"why": why})

    def notes(self, done: int) -> dict[str, float]:
        """For the row of step `done`, the first after the training went back: `rolled_back`, the step that it was at;
        `left_out`, batches.
        """
        for row in self._left_out:
            if row.step == done - 1:
                return {"rolled_back": row.trouble, "left_out": row.last - row.first}
        return {}

    # --- the checkpoint, the manifest and the card ----------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For a checkpoint, JSON values."""
        return {
            "losses": list(self._losses),
            "norms": list(self._norms),
            "streak": self.streak,
            "finite": self.finite,
            "tries": self._tries,
            "left_out": [list(row) for row in self._left_out],
            "counts": dict(self.counts),
            "events": [dict(row) for row in self.events],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """As `state` gave it; {}: of a checkpoint from before there was a policy."""
        fresh = SpikeGuard(self._policy)
        self._losses, self._norms = fresh._losses, fresh._norms
        self._losses.extend(state.get("losses", ()))
        self._norms.extend(state.get("norms", ()))
        self.streak, self.finite = state.get("streak", 0), state.get("finite", True)
        self._tries = state.get("tries", 0)
        self._left_out = [LeftOut(*row) for row in state.get("left_out", ())]
        self.counts = fresh.counts | dict(state.get("counts", {}))
        self.events = [dict(row) for row in state.get("events", ())]

    def statistics(self) -> dict[str, Any]:
        """For the manifest: {} where nothing was wrong."""
        counts = {name: count for name, count in self.counts.items() if count}
        return {"trouble": {**counts, "left_out": self._batches, "events": self.events}} if counts else {}

    @property
    def _batches(self) -> int:
        """That no step took."""
        return sum(row.last - row.first for row in self._left_out)

    def _tell(self, event: dict[str, Any]) -> None:
        """In the order of steps, whatever was done twice."""
        self.events = sorted([*self.events, event], key=lambda row: (row["step"], row["event"]))[-MOST_EVENTS:]


def card_lines(stats: Mapping[str, Any]) -> list[str]:
    """What a model card says of it. stats: with those of `SpikeGuard.statistics`."""
    trouble: Mapping[str, Any] = stats.get("trouble", {})
    if not trouble:
        return []
    reasons = {"not_finite": "its loss or gradient was no finite number", "spike": "it was a spike"}
    lines = ["## Trouble", "", "Steps that changed nothing, and batches that the training went around.", ""]
    lines += ["| what | how often |", "| --- | ---: |"]
    lines += [f"| step left out: {why} | {trouble[name]:,} |" for name, why in reasons.items() if name in trouble]
    backs: Sequence[Mapping[str, Any]] = [row for row in trouble["events"] if row["event"] == "rolled_back"]
    lines += [
        f"| went back from step {row['from']:,} to {row['step']:,}: {reasons[row['why']]} |"
        f" around {row['left_out']:,} batches |"
        for row in backs
    ]
    return [*lines, ""]


def _log(norm: float) -> float:
    """Gradient norms spread by factors, not by differences."""
    return math.log(max(norm, 1e-30))


def _deviations(value: float, before: Sequence[float] | deque[float]) -> float:
    """How far a value lies above the median, in standard deviations as the median absolute deviation estimates them."""
    middle = median(before)
    spread = NORMAL * median(abs(other - middle) for other in before)
    return (value - middle) / max(spread, LEAST_DEVIATION * abs(middle), 1e-12)
