"""What a model took: hours, dollars and energy, from the recorded times of what it was made of.

Times are the ledger's. Dollars and watts are those of infra/gpu_prices.toml, which names where each comes from. Nothing
is said of what is not known: a processor whose watts nobody wrote down has no energy here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.core.messages import StageResult
from stages.core.resources import Resources


@dataclass(frozen=True)
class Use:
    """What one result took. kwh: at the card's full power; None: not known."""

    node: str
    digest: str
    wall_seconds: float
    core_hours: float
    gpu_hours: float
    dollars: float
    kwh: float | None
    resumed: bool


@dataclass(frozen=True)
class Sum:
    """Of several uses. kwh: of those where it is known; unknown: the nodes where it is not."""

    wall_seconds: float
    core_hours: float
    gpu_hours: float
    dollars: float
    kwh: float
    unknown: tuple[str, ...]


def use(result: StageResult, resources: Resources, prices: Mapping[str, Any]) -> Use:
    """What the attempt that made a result took. resources: how many GPUs its profile gives it; prices: as
    `flows.cost.prices_of`.
    """
    attempt = result.attempt
    gpus = resources.gpus * resources.nodes
    hours, cores = attempt.wall_seconds / 3600 * gpus, attempt.cpu_seconds / 3600
    gpu, cpu = prices["gpu"], prices["cpu"]
    watts, busy = (gpu.get("watts"), hours) if gpus else (cpu.get("watts_per_core"), cores)
    return Use(
        node=result.node,
        digest=next((out.digest for out in result.outputs.values()), ""),
        wall_seconds=attempt.wall_seconds,
        core_hours=cores,
        gpu_hours=hours,
        dollars=hours * gpu["dollars_per_hour"] if gpus else cores * cpu["dollars_per_core_hour"],
        kwh=None if watts is None else busy * watts / 1000,
        resumed=attempt.resumed_from is not None,
    )


def total(uses: Sequence[Use]) -> Sum:
    """The sum."""
    return Sum(
        wall_seconds=sum(one.wall_seconds for one in uses),
        core_hours=sum(one.core_hours for one in uses),
        gpu_hours=sum(one.gpu_hours for one in uses),
        dollars=sum(one.dollars for one in uses),
        kwh=sum(one.kwh or 0.0 for one in uses),
        unknown=tuple(one.node for one in uses if one.kwh is None),
    )
