"""How a configuration becomes a rehearsal's: beside each field that counts work stands how much of it is enough there.

    steps: Annotated[int, Shrinks(wiring=4, shape=12)] = Field(1000, gt=0, description="...")

Level `wiring` is the smallest that still takes every step of the way; `shape` keeps widths, lengths and micro-batches,
so that memory and rates can be measured. What several fields have to agree on is settled by the model's `rehearsed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel

Level = Literal["wiring", "shape"]
LEVELS: tuple[Level, ...] = ("wiring", "shape")
STEPS: Mapping[Level, int] = {"wiring": 4, "shape": 12}
"""Optimizer steps of a training that is counted in rows or tokens. The first ones of a process take longer than those
of a long run: level `shape` has some beyond them.
"""
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Rehearsal:
    """What a configuration is derived for."""

    level: Level
    ranks: int = 1
    """Processes that train together, on all nodes."""

    @property
    def steps(self) -> int:
        """Optimizer steps of a training."""
        return STEPS[self.level]


@dataclass(frozen=True, kw_only=True)
class Shrinks:
    """Metadata of a field that counts work: at most so much in a rehearsal of that level; None: as it is."""

    wiring: float | None = None
    shape: float | None = None
    unset: bool = True
    """Whether a field without a value means everything, and so gets the bound too."""

    def value(self, value: Any, level: Level) -> Any:
        """A value in a rehearsal of that level. What is no number, such as the name of a cluster, stays."""
        most = getattr(self, level)
        if most is None or isinstance(value, str):
            return value
        if value is None:
            return most if self.unset else None
        return min(value, most)


@dataclass(frozen=True, kw_only=True)
class Grows:
    """Metadata of a field that a small run needs more of, such as a held-out share: at least so much. Nothing stays
    nothing.
    """

    wiring: float | None = None
    shape: float | None = None

    def value(self, value: Any, level: Level) -> Any:
        """A value in a rehearsal of that level."""
        least = getattr(self, level)
        return max(value, least) if value and least is not None else value


def shrunk(model: M, rehearsal: Rehearsal) -> M:
    """The model for a rehearsal, inner models, lists and tables of models too. Raises pydantic's ValidationError."""
    values: dict[str, Any] = {}
    for name, info in type(model).model_fields.items():
        value = _inner(getattr(model, name), rehearsal)
        for rule in info.metadata:
            if isinstance(rule, Shrinks | Grows):
                value = rule.value(value, rehearsal.level)
        values[name] = value
    settle = getattr(model, "rehearsed", None)
    if settle is not None:
        values = settle(values, rehearsal)
    return type(model).model_validate(values)


def _inner(value: Any, rehearsal: Rehearsal) -> Any:
    if isinstance(value, BaseModel):
        return shrunk(value, rehearsal)
    if isinstance(value, tuple):
        return tuple(_inner(item, rehearsal) for item in cast("tuple[Any, ...]", value))
    if isinstance(value, Mapping):
        return {key: _inner(item, rehearsal) for key, item in cast("Mapping[Any, Any]", value).items()}
    return value


def whole(size: int, unit: int) -> int:
    """The size rounded down to whole units, one at least."""
    return max(unit, size - size % unit)


def small_batch(values: Mapping[str, Any], rehearsal: Rehearsal, parts: int) -> int:
    """A training's global batch: one or two forward passes for each of `parts`, in whole ones."""
    unit = values["micro_batch_size"] * parts
    return whole(min(values["global_batch_size"], 2 * unit), unit)
