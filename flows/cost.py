"""What a plan would cost: time, GPU-hours, core-hours, dollars.

An earlier result of the same node is the best estimate. Without one, a stage's own count of work (FLOPs, bytes) is
divided by the rates in infra/pricing.toml. Of artifacts that are not there yet, what the configuration fixes is taken: a model's
parameters, and the rows that a mixture is capped at. An estimate that rests on nothing is left empty: no number beats a made-up one.
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
            return f"{_hours(self.gpu_hours)} GPU-h, ${self.dollars:,.0f}"
        return f"{self.seconds:,.0f} s"


def estimate(plans: Sequence[NodePlan], profile: Profile, ledger: Ledger) -> dict[str, Estimate]:
    """Estimate every planned node; nodes that the ledger answers cost nothing."""
    prices = tomllib.loads(PRICING.read_text(encoding="utf-8"))
    history = ledger.nodes(profile.name)
    out: dict[str, Estimate] = {}
    expected: dict[str, dict[str, Any]] = {}
    for plan in plans:
        expected[plan.node.name] = _expected_meta(plan, profile, expected)
        if not plan.will_run:
            out[plan.node.name] = Estimate(basis="ledger")
            continue
        record = history.get(plan.node.name)
        found = ledger.manifest(record.key) if record else None
        out[plan.node.name] = _measured(found[0], prices) if found else _computed(plan, profile, prices, expected)
    return out


def _expected_meta(plan: NodePlan, profile: Profile, expected: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What the configuration, or else a parent, already fixes of a node's artifacts: `parameters`, `rows`."""
    node, config = plan.node, profile.configs[plan.node.name]
    if plan.resolved and plan.resolved.result:
        found = [m.meta for m in plan.resolved.result.outputs.values()]
        return {name: m[name] for m in found for name in ("parameters", "rows") if name in m}
    caps = [source.cap for source in getattr(config, "sources", ()) if hasattr(source, "cap")]
    meta = {"rows": sum(caps)} if caps and None not in caps else {}
    count = getattr(getattr(config, "shape", None), "parameters", None)
    sizes = [getattr(profile.configs[s.node.name], "vocab_size", None) for s in node.wires.get("tokenizer", ())]
    if count and sizes and sizes[0]:
        return meta | {"parameters": count(sizes[0])}
    inherited = [expected.get(s.node.name, {}) for port in ("parent", "base", "model") for s in node.wires.get(port, ())]
    known = [p["parameters"] for p in inherited if "parameters" in p]
    return meta | ({"parameters": known[0]} if known else {})


def _measured(result: StageResult, prices: Mapping[str, Any]) -> Estimate:
    cores = result.attempt.cpu_seconds / 3600
    return Estimate(
        seconds=result.attempt.wall_seconds,
        core_hours=cores,
        dollars=cores * prices["cpu"]["dollars_per_core_hour"],
        basis="last result",
    )


def _computed(plan: NodePlan, profile: Profile, prices: Mapping[str, Any], expected: Mapping[str, dict[str, Any]]) -> Estimate:
    config, resources = profile.configs[plan.node.name], profile.resources[plan.node.name]
    if plan.resolved:
        inputs = {port: [ref.manifest for ref in refs] for port, refs in plan.resolved.inputs.items()}
    else:
        inputs = {port: [_provisional(expected.get(s.node.name, {})) for s in sources] for port, sources in plan.node.wires.items()}
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


def _hours(hours: float) -> str:
    return f"{hours:,.{0 if hours >= 10 else 1}f}"


def _provisional(meta: Mapping[str, Any]) -> ArtifactManifest:
    """An artifact that is not there yet: no files, and what is known of it."""
    return ArtifactManifest(type="", digest="0" * 64, facets={}, meta=dict(meta), files=())


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
        line += f": {_hours(sums['gpu_hours'])} GPU-hours, {sums['core_hours']:.2f} core-hours, ${sums['dollars']:,.2f}"
    if sums["unknown"]:
        line += f"; no estimate yet for {len(sums['unknown'])} of them"
    return line
