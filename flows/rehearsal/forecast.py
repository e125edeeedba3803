"""What the real run takes, by what rehearsals measured.

A node's time is a fixed part and a part that grows with its work. Two rehearsals of it, wiring and shape, tell both;
of one that trains, a rehearsal's own rate does. Work is counted as the plan counts it (`units`). The interval: without
any fixed part (from above), and by the fastest and the slowest step (of a training).

Nothing is forecast where a stand-in ran, or where the work is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flows import scale
from flows.cost import Estimate
from flows.rehearsal.report import Forecast, NodeReport
from stages.core.artifacts import ArtifactManifest
from stages.core.errors import StageError
from stages.core.graph import Node
from stages.core.resources import Resources

REHEARSED = "rehearsal of"
"""How the basis of an estimate begins that goes by one."""
CORE_SECONDS = "core-seconds by infra/rates.toml"


def units(config: Any, estimate: Estimate) -> tuple[str, float]:
    """How much work a node is, and in what; ("", 0): not known."""
    if hasattr(config, "tokens") and hasattr(config, "steps"):
        return "tokens", float(config.steps * config.global_batch_size * config.sequence_length)
    if estimate.flops:
        return "FLOPs", estimate.flops
    if suites := getattr(config, "suites", ()):
        limits = [task.limit for suite in suites for task in suite.tasks]
        return ("questions a task", float(sum(limits))) if None not in limits else ("", 0.0)
    if estimate.scale and estimate.scale.core_seconds:
        return CORE_SECONDS, estimate.scale.core_seconds
    return "", 0.0


def units_of_inputs(
    node: Node, config: Any, resources: Resources, inputs: Mapping[str, Sequence[ArtifactManifest]]
) -> tuple[str, float]:
    """How much work a node was, by what it read."""
    try:
        work = node.work(config, inputs)
        sizes = scale.of_node(node, config, resources, {port: list(many) for port, many in inputs.items()}, {})
    except StageError:
        return "", 0.0
    return units(config, Estimate(flops=work.flops + work.written_flops, scale=sizes))


def forecast(
    real: tuple[str, float],
    resources: Resources,
    prices: Mapping[str, Any],
    shape: NodeReport | None,
    wiring: NodeReport | None,
) -> Forecast | None:
    """The time and the price of a node's real run; None: nothing that could be told was measured."""
    name, amount = real
    large, small = _usable(shape, name), _usable(wiring, name)
    if not amount or large is None or large.measured is None or not large.units:
        return None
    one = large.measured
    more = resources.nodes * resources.ranks / max(1, large.ranks)
    if name == "tokens" and one.tokens_per_second:
        slow, middle, fast = one.tokens_per_second
        fixed = max(0.0, one.seconds - large.units / middle)
        seconds = [fixed + amount / (rate * more) for rate in (fast, middle, slow)]
        basis = f"{middle:,.0f} tokens/s of {large.ranks} processes"
    elif small is not None and small.measured is not None and large.units > small.units:
        slope = max(0.0, one.seconds - small.measured.seconds) / (large.units - small.units)
        fixed = max(0.0, one.seconds - slope * large.units)
        likely, most = fixed + slope * amount / more, one.seconds * amount / (large.units * more)
        seconds = [likely, likely, max(likely, most)]
        basis = f"two rehearsals of {small.units:,.3g} and {large.units:,.3g} {name}"
    else:
        return None
    gpus, cores = resources.gpus * resources.nodes, one.cpu_seconds / one.seconds if one.seconds else 0.0
    gpu, cpu = prices["gpu"]["dollars_per_hour"], prices["cpu"]["dollars_per_core_hour"]
    low, likely, high = (value / 3600 * (gpus * gpu if gpus else cores * more * cpu) for value in seconds)
    return Forecast(
        seconds=(seconds[0], seconds[1], seconds[2]),
        gpu_hours=seconds[1] / 3600 * gpus,
        core_hours=0.0 if gpus else seconds[1] / 3600 * cores * more,
        dollars=(low, likely, high),
        basis=basis + (f", taken to grow with their number to {resources.nodes * resources.ranks}" if more > 1 else ""),
    )


def _usable(node: NodeReport | None, name: str) -> NodeReport | None:
    """A report whose numbers say something about the real machines, in the same count of work."""
    if node is None or node.state != "passed" or node.unit != name:
        return None
    return None if node.unlike else node


def as_estimate(one: Forecast, at: str, before: Estimate) -> Estimate:
    """A plan's estimate that goes by what was measured."""
    return replace(
        before,
        seconds=one.seconds[1],
        gpu_hours=one.gpu_hours,
        core_hours=one.core_hours,
        dollars=one.dollars[1],
        basis=f"{REHEARSED} {at[:10]}",
        untimed="",
    )
