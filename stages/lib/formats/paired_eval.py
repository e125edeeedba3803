"""`Effect`: what a stage did to its parent, measured on held-out data, with its uncertainty. Light to import.

Parent and child are measured on the same rows, so the difference is a paired one: its standard error is that of the
rows' differences, not of two independent means. Standard errors are over rows; a row's trials are averaged first,
because trials at one problem are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.errors import InputError

Z95 = 1.959964
"""Half-width of a 95 % interval of the normal distribution, in standard errors."""
Z99_ONE_SIDED = 2.326348
"""What a one-sided test at 1 % asks of a difference, in standard errors."""


class Effect(BaseModel):
    """One measure of parent and child."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    unit: str = Field(description="nats, share, ...")
    better: Literal["lower", "higher"]
    before: float = Field(description="the parent")
    before_stderr: float
    after: float = Field(description="the child")
    after_stderr: float
    difference: float = Field(description="child minus parent, on the same rows")
    difference_stderr: float
    n: int = Field(description="held-out rows")
    trials: int = Field(description="measurements of each row, averaged before anything else")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference."""
        half = Z95 * self.difference_stderr
        return self.difference - half, self.difference + half

    @property
    def shown(self) -> bool:
        """Whether the child is better by more than noise: one-sided, 1 %."""
        gain = self.difference if self.better == "higher" else -self.difference
        return gain > Z99_ONE_SIDED * self.difference_stderr and gain > 0


def ratio(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """Sum of values over sum of weights, and its standard error over rows (linearised: rows are the independent
    units).
    """
    total, n = sum(weights), len(values)
    if not total:
        return math.nan, math.nan
    mean = sum(values) / total
    squares = sum((v - mean * w) ** 2 for v, w in zip(values, weights, strict=True))
    return mean, math.sqrt(squares * n / max(1, n - 1)) / total


def effect(
    metric: str,
    before: Sequence[float],
    after: Sequence[float],
    *,
    better: Literal["lower", "higher"],
    unit: str = "share",
    weights: Sequence[float] | None = None,
    trials: int = 1,
) -> Effect:
    """Compare parent and child row by row. values: sums of a row when `weights` are given (its tokens), else its
    mean.
    """
    weights = [1.0] * len(before) if weights is None else weights
    first, second = ratio(before, weights), ratio(after, weights)
    change = ratio([b - a for a, b in zip(before, after, strict=True)], weights)
    numbers = (*first, *second, *change)
    names = ("before", "before_stderr", "after", "after_stderr", "difference", "difference_stderr")
    values = {name: round(number, 6) for name, number in zip(names, numbers, strict=True)}
    return Effect(metric=metric, unit=unit, better=better, n=len(before), trials=trials, **values)


def as_stats(effects: Sequence[Effect]) -> dict[str, Any]:
    """The numbers for the manifest: each by name, and all of them typed under `effects`."""
    stats: dict[str, Any] = {}
    for one in effects:
        stats |= {f"before_{one.metric}": one.before, f"after_{one.metric}": one.after, f"n_{one.metric}": one.n}
    return {**stats, "effects": [one.model_dump() for one in effects]}


def from_stats(stats: Mapping[str, Any], where: str) -> list[Effect]:
    """The effects that a manifest's numbers hold; none when it has none. Raises InputError naming `where`."""
    try:
        return [Effect.model_validate(value) for value in stats.get("effects", [])]
    except ValidationError as error:
        raise InputError(f"{where}: an effect is malformed: {error.errors()[0]['msg']}") from error
