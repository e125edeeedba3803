"""What a plan would cost: time, GPU-hours, core-hours, dollars.

An earlier result of the same node is the best estimate. Without one, a stage's own count of work (FLOPs, bytes) is
divided by the rates in infra/pricing.toml. An estimate that rests on nothing is left empty: no number beats a made-up one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.plan import NodePlan
from flows.profiles import Profile
from stages.core.artifacts import ArtifactManifest
from stages.core.contracts import StageResult
from stages.core.ledger import Ledger

PRICING = Path(__file__).resolve().parents[1] / "infra" / "pricing.toml"


@dataclass(frozen=True)
class Estimate:
    """What one node would take. `basis` says where the numbers come from; zeros with basis '' mean: not known."""

    seconds: float = 0.0
    gpu_hours: float = 0.0
    core_hours: float = 0.0
    dollars: float = 0.0
    flops: float = 0.0
    basis: str = ""

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def text(self) -> str:
        """For the plan's table."""
        if not self.basis:
            return ""
        if self.gpu_hours:
            return f"{self.gpu_hours:,.0f} GPU-h, ${self.dollars:,.0f}"
        return f"{self.seconds:,.0f} s"


def estimate(plans: Sequence[NodePlan], profile: Profile, ledger: Ledger) -> dict[str, Estimate]:
    """Estimate every planned node; nodes that the ledger answers cost nothing."""
    prices = tomllib.loads(PRICING.read_text(encoding="utf-8"))
    history = ledger.nodes(profile.name)
    out: dict[str, Estimate] = {}
    for plan in plans:
        if not plan.will_run:
            out[plan.node.name] = Estimate(basis="ledger")
            continue
        record = history.get(plan.node.name)
        found = ledger.manifest(record.key) if record else None
        out[plan.node.name] = _measured(found[0], prices) if found else _computed(plan, profile, prices)
    return out


def _measured(result: StageResult, prices: Mapping[str, Any]) -> Estimate:
    cores = result.attempt.cpu_seconds / 3600
    return Estimate(
        seconds=result.attempt.wall_seconds,
        core_hours=cores,
        dollars=cores * prices["cpu"]["dollars_per_core_hour"],
        basis="last result",
    )


def _computed(plan: NodePlan, profile: Profile, prices: Mapping[str, Any]) -> Estimate:
    config, resources = profile.configs[plan.node.name], profile.resources[plan.node.name]
    inputs: dict[str, list[ArtifactManifest]] = {}
    if plan.resolved:
        inputs = {port: [ref.manifest for ref in refs] for port, refs in plan.resolved.inputs.items()}
    work = plan.node.work(config, inputs)
    if work.flops and resources.gpus:
        gpu = prices["gpu"]
        seconds = work.flops / (gpu["peak_tflops"] * 1e12 * gpu["utilization"])  # of one GPU
        hours = seconds / 3600
        wall = seconds / (resources.gpus * resources.nodes)
        return Estimate(wall, hours, 0.0, hours * gpu["dollars_per_hour"], work.flops, "FLOPs")
    cpu = prices["cpu"]
    if work.flops:
        core_seconds = work.flops / (cpu["gflops_per_core"] * 1e9)
    elif work.bytes:
        core_seconds = work.bytes / cpu["bytes_per_core_second"]
    else:
        return Estimate()
    hours = core_seconds / 3600
    return Estimate(
        core_seconds / resources.cpus, 0.0, hours, hours * cpu["dollars_per_core_hour"], work.flops, "FLOPs" if work.flops else "bytes"
    )


def total(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Sums over a plan, and the nodes that nothing is known about."""
    return {
        "gpu_hours": sum(e.gpu_hours for e in estimates.values()),
        "core_hours": sum(e.core_hours for e in estimates.values()),
        "dollars": sum(e.dollars for e in estimates.values()),
        "flops": sum(e.flops for e in estimates.values()),
        "unknown": [name for name, e in estimates.items() if not e.basis],
    }


def total_text(estimates: Mapping[str, Estimate], plans: Sequence[NodePlan]) -> str:
    """The sums as one line for people."""
    sums = total(estimates)
    run = sum(p.will_run for p in plans)
    line = f"{len(plans)} nodes, {run} to run"
    if run:
        line += f": {sums['gpu_hours']:,.0f} GPU-hours, {sums['core_hours']:.2f} core-hours, ${sums['dollars']:,.2f}"
    if sums["unknown"]:
        line += f"; no estimate yet for {len(sums['unknown'])} of them"
    return line
