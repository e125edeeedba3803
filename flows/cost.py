"""What a plan would cost: time, GPU-hours, core-hours, dollars.

An earlier result of the same node is the best estimate. Without one, a stage's own count of work (FLOPs, bytes) is
divided by the rates in infra/gpu_prices.toml. Of artifacts that are not there yet, what the configuration fixes is
taken: a model's parameters, the rows that a mixture is capped at, or that its sets are known to have
(infra/data_sets.toml). An estimate that rests on nothing is left empty: no number beats a made-up one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from flows import memory, scale, training_work
from flows.data_files import DATA
from flows.memory import Memory
from flows.plan import NodePlan
from flows.profiles import Profile
from flows.scale import NodeScale, size
from flows.terminal_text import counted
from stages.core.artifacts import ArtifactManifest
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.resources import Resources
from stages.core.scale import Amounts
from stages.lib.modeling.shape import ModelShape

GPU_PRICES = DATA / "infra" / "gpu_prices.toml"
LONG = 30 * 86_400.0
"""Seconds beyond which a plan warns of a node: a month."""
LOSS = 3600.0
"""Seconds beyond which a plan says what a lost attempt costs: an hour."""
ITS_BEGINNING = "its beginning"
"""What `Stage.resumes` says of a stage that cannot go on in the middle."""
WARMUP = 0.1
"""Share of the steps beyond which a plan warns of a warm-up."""


Grown = Callable[[str, Mapping[str, Sequence[ArtifactManifest]]], Mapping[str, Amounts]]
"""A node's name and inputs -> what its outputs hold, by port."""


@dataclass(frozen=True)
class Estimate:
    """What one node would take. `basis` says where the numbers come from; zeros with basis '' mean: not known."""

    seconds: float = 0.0
    gpu_hours: float = 0.0
    core_hours: float = 0.0
    dollars: float = 0.0
    flops: float = 0.0
    basis: str = ""
    memory: Memory | None = None
    """Of one GPU and of a machine, where a training is planned and its formula is known."""
    memory_unknown: str = ""
    """Why no formula is known."""
    lost_seconds: float = 0.0
    """What an attempt that breaks loses at most."""
    scale: NodeScale | None = None
    """Bytes, disk, tasks; None where the ledger answers."""
    untimed: str = ""
    """Why there are no seconds."""
    parameters: int = 0
    """Of its model; 0: it has none, or that is not known."""
    rows: int = 0
    """That a training reads in one pass; 0: it reads none, or that is not known."""
    questions: int = 0
    """That each data set of its suites asks; 0: not known."""
    measuring: tuple[float, float] = (0.0, 0.0)
    """FLOPs of reading and of writing to measure the model beside its training."""
    step: float = 0.0
    """Seconds of one step, where a rehearsal measured them."""
    last_checkpoint: tuple[float, float, float] | None = None
    """Bytes of one machine, seconds to its disk, seconds to the store, where a rehearsal measured them."""

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {
            "memory": self.memory.row() if self.memory else None,
            "scale": self.scale.row() if self.scale else None,
        }

    def text(self) -> str:
        """For the plan's table."""
        parts = [text] if self.scale and (text := self.scale.text()) else []
        if self.memory:
            parts.append(self.memory.summary())
        elif self.memory_unknown:
            parts.append(f"no formula of memory: {self.memory_unknown}")
        if not self.basis:
            time = f"time not known ({self.untimed})" if self.untimed else "not estimated"
        elif self.gpu_hours:
            time = f"{duration(self.seconds)}, {_hours(self.gpu_hours)} GPU-h, ${self.dollars:,.0f}"
        elif self.core_hours >= 1:
            dollars = f"${self.dollars:,.{0 if self.dollars >= 10 else 2}f}"
            time = f"{duration(self.seconds)}, {_hours(self.core_hours)} core-h, {dollars}"
        else:
            time = duration(self.seconds)
        return "; ".join([time, *parts])


def duration(seconds: float) -> str:
    """Seconds in the unit that people would name."""
    for one, unit, most in ((1.0, "s", 600), (60.0, "min", 7200), (3600.0, "h", 259_200)):
        if seconds < most:
            return f"{seconds / one:,.0f} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def estimate(
    plans: Sequence[NodePlan],
    profile: Profile,
    ledger: Ledger | None,
    sources: Mapping[str, Amounts] | None = None,
    grown: Grown | None = None,
) -> dict[str, Estimate]:
    """Estimate every planned node; nodes that the ledger answers cost nothing.

    ledger: None: as if nothing had ever run. sources: what raw sources hold, by output port, instead of what is
    declared of them. grown: tells what a node makes of its inputs, where its own sums do not.
    """
    prices = prices_of(profile)
    last = ledger.last_results(profile.names, [p.node.name for p in plans if p.will_run]) if ledger else {}
    out: dict[str, Estimate] = {}
    expected: dict[str, dict[str, Any]] = {}
    amounts: dict[str, Mapping[str, Amounts]] = {}
    for plan in plans:
        expected[plan.node.name] = _expected_meta(plan, profile, expected)
        if not plan.will_run:
            results = plan.resolved.result.outputs if plan.resolved and plan.resolved.result else {}
            amounts[plan.node.name] = {port: scale.held(manifest) for port, manifest in results.items()}
            out[plan.node.name] = Estimate(basis="ledger")
            continue
        last_result = last.get(plan.node.name)
        inputs = _inputs(plan, expected, amounts)
        config, resources = profile.configs[plan.node.name], profile.resources[plan.node.name]
        sizes = scale.of_node(plan.node, config, resources, inputs, expected[plan.node.name])
        listed = {port: {**sizes.outputs[port], **(sources or {}).get(port, {})} for port in sizes.outputs}
        amounts[plan.node.name] = listed if plan.node.stage == "collect" else sizes.outputs
        if grown is not None:
            counts = grown(plan.node.name, inputs)
            amounts[plan.node.name] = {p: a or counts.get(p, {}) for p, a in amounts[plan.node.name].items()}
        one = (
            measured(last_result, resources, prices) if last_result else _computed(plan, profile, prices, inputs, sizes)
        )
        held = _memory(plan, profile, prices, expected, inputs)
        lost = one.seconds * (1 / sizes.tasks if sizes.tasks > 1 else _lost(plan, profile, inputs))
        why = memory.unknown(plan.node.stage, config, resources)
        untimed = "" if one.basis else sizes.unknown or plan.node.untimed
        one = replace(one, memory=held, memory_unknown=why, lost_seconds=lost, scale=sizes, untimed=untimed)
        out[plan.node.name] = replace(
            one,
            parameters=expected[plan.node.name].get("parameters", 0),
            rows=training_work.rows_of(config, inputs),
            questions=training_work.questions_of(plan, profile),
            measuring=training_work.measuring_of(plan.node, config, inputs),
        )
    return out


def prices_of(profile: Profile) -> dict[str, Any]:
    """The price list for a profile's card. Raises ConfigError when it has none of that name."""
    prices = tomllib.loads(GPU_PRICES.read_text(encoding="utf-8"))
    cards, name = prices.get("cards", {}), profile.settings.card
    if name and name not in cards:
        raise ConfigError(
            f"profile {profile.name}: card = '{name}', but infra/gpu_prices.toml has no such card; there are:"
            f" {', '.join(cards) or 'none'}"
        )
    return prices | {"gpu": prices["gpu"] | ({"name": name} | cards[name] if name else {})}


def _memory(
    plan: NodePlan,
    profile: Profile,
    prices: Mapping[str, Any],
    expected: Mapping[str, dict[str, Any]],
    inputs: Mapping[str, Sequence[ArtifactManifest]],
) -> Memory | None:
    node, known = plan.node, expected[plan.node.name]
    if "shape" not in known:
        return None
    config, measured = profile.configs[node.name], None
    if node.stage in memory.STAGES:
        measured = node.measuring(config, inputs)
    shape = ModelShape.model_validate(known["shape"])
    return memory.of_node(
        node.stage,
        config,
        profile.resources[node.name],
        shape,
        memory.VOCABULARY,
        prices["gpu"]["memory_gib"] * memory.GIB,
        measured.memory_bytes if measured else 0.0,
    )


def _lost(plan: NodePlan, profile: Profile, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> float:
    """The share of a node's time that a broken attempt loses at most: all of it, unless there are checkpoints every so
    many steps.
    """
    config = profile.configs[plan.node.name]
    every = getattr(config, "checkpoint_every", None)
    if plan.node.resumes(config) == ITS_BEGINNING or not every:
        return 1.0
    steps = training_work.steps_of(config, training_work.rows_of(config, inputs))
    return min(1.0, every / steps) if steps else 1.0


def limits(plans: Sequence[NodePlan], profile: Profile, estimates: Mapping[str, Estimate]) -> list[str]:
    """What does not fit the machines that the profile asks for, one line each: local disk, memory, a GPU's memory.

    A run is not refused for them, as sums may be wrong where a person knows better; `moxin plan` ends with 1.
    """
    lines: list[str] = []
    for plan in plans:
        if not plan.will_run:
            continue
        name, one = plan.node.name, estimates[plan.node.name]
        if one.scale is not None:
            lines += scale.limits(name, one.scale, profile.resources[name])
        if one.memory is not None:
            lines += one.memory.limits(name)
    return lines


def warnings(plans: Sequence[NodePlan], profile: Profile, estimates: Mapping[str, Estimate]) -> list[str]:
    """What a plan has to say beside its table and its limits, one line each: months, warm-ups, what cannot go on in the
    middle.
    """
    lines: list[str] = []
    for plan in plans:
        if not plan.will_run:
            continue
        name, config, one = plan.node.name, profile.configs[plan.node.name], estimates[plan.node.name]
        resources = profile.resources[name]
        if one.seconds > LONG:
            where = f" on {resources.gpus * resources.nodes} GPUs" if one.gpu_hours else f" on {resources.cpus:g} cores"
            lines.append(f"{name}: would take {duration(one.seconds)}{where}")
        warmup, steps = getattr(config, "warmup_steps", 0), getattr(config, "steps", 0)
        if steps and warmup > WARMUP * steps:
            lines.append(f"{name}: warmup_steps = {warmup} are {warmup / steps:.0%} of its {steps:,} steps")
        if one.lost_seconds > LOSS and one.basis != "ledger":
            price = one.dollars * one.lost_seconds / one.seconds
            lines.append(
                f"{name}: a broken attempt goes on from {plan.node.resumes(config)}: {duration(one.lost_seconds)} and"
                f" ${price:,.0f} lost at most"
            )
    return lines


def _expected_meta(plan: NodePlan, profile: Profile, expected: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What the configuration, or else a parent, already fixes of a node's artifacts: `parameters`, `rows`, `shape`."""
    node, config = plan.node, profile.configs[plan.node.name]
    if plan.resolved and plan.resolved.result:
        metas = [m.meta for m in plan.resolved.result.outputs.values()]
        return {name: m[name] for m in metas for name in ("parameters", "rows", "shape") if name in m}
    counts = [training_work.source_rows(source) for source in getattr(config, "sources", None) or ()]
    meta: dict[str, Any] = {"rows": sum(n for n in counts if n)} if counts and None not in counts else {}
    shape: Any = getattr(config, "shape", None)
    count = getattr(shape, "parameters", None)
    sizes = [getattr(profile.configs[s.node.name], "vocab_size", None) for s in node.wires.get("tokenizer", ())]
    if count and sizes and sizes[0]:
        return meta | {"parameters": count(sizes[0]), "shape": shape.model_dump()}
    inherited = [
        expected.get(s.node.name, {}) for port in ("parent", "base", "model") for s in node.wires.get(port, ())
    ]
    known = [p for p in inherited if "parameters" in p]
    return meta | ({name: known[0][name] for name in ("parameters", "shape") if name in known[0]} if known else {})


def measured(result: StageResult, resources: Resources, prices: Mapping[str, Any]) -> Estimate:
    """What an attempt that made a result has cost."""
    cores = result.attempt.cpu_seconds / 3600
    hours = result.attempt.wall_seconds / 3600 * resources.gpus * resources.nodes
    return Estimate(
        seconds=result.attempt.wall_seconds,
        gpu_hours=hours,
        core_hours=cores,
        dollars=hours * prices["gpu"]["dollars_per_hour"] if hours else cores * prices["cpu"]["dollars_per_core_hour"],
        basis="last result",
    )


def _inputs(
    plan: NodePlan, expected: Mapping[str, dict[str, Any]], amounts: Mapping[str, Mapping[str, Amounts]]
) -> dict[str, list[ArtifactManifest]]:
    """The artifacts that a node reads, or what is known of them before they are there."""
    if plan.resolved:
        return {port: [ref.manifest for ref in refs] for port, refs in plan.resolved.inputs.items()}
    return {
        port: [
            scale.expected({**expected.get(s.node.name, {}), **amounts.get(s.node.name, {}).get(s.port, {})})
            for s in sources
        ]
        for port, sources in plan.node.wires.items()
    }


def _computed(
    plan: NodePlan,
    profile: Profile,
    prices: Mapping[str, Any],
    inputs: Mapping[str, Sequence[ArtifactManifest]],
    sizes: NodeScale,
) -> Estimate:
    config, resources = profile.configs[plan.node.name], profile.resources[plan.node.name]
    work = plan.node.work(config, inputs)
    if work.flops and resources.gpus:
        gpu, gpus = prices["gpu"], resources.gpus * resources.nodes
        peak = gpu["peak_tflops"] * 1e12
        alone = work.one_gpu_flops / (peak * gpu["utilization"])
        shared = (work.flops - work.one_gpu_flops) / (peak * gpu["utilization"])
        shared += work.written_flops / (peak * gpu["writing_utilization"])  # of one GPU
        seconds = alone + shared / gpus
        hours = seconds / 3600 * gpus  # those that wait are paid for
        return Estimate(seconds, hours, 0.0, hours * gpu["dollars_per_hour"], work.flops + work.written_flops, "FLOPs")
    cpu = prices["cpu"]
    if sizes.core_seconds:
        hours = sizes.core_seconds / 3600
        return Estimate(sizes.seconds, 0.0, hours, hours * cpu["dollars_per_core_hour"], basis=", ".join(sizes.rates))
    if work.flops:
        core_seconds = (work.flops + work.written_flops) / (cpu["gflops_per_core"] * 1e9)
    elif work.bytes:
        core_seconds = work.bytes / cpu["bytes_per_core_second"]
    else:
        return Estimate()
    hours = core_seconds / 3600
    return Estimate(
        core_seconds / resources.cpus,
        0.0,
        hours,
        hours * cpu["dollars_per_core_hour"],
        work.flops + work.written_flops,
        "FLOPs" if work.flops else "bytes",
    )


def _hours(hours: float) -> str:
    return f"{hours:,.{0 if hours >= 10 else 1}f}"


def assumptions(estimates: Mapping[str, Estimate]) -> str:
    """What the sums rest on beside measurements and settings, as one line for people; "": nothing was assumed."""
    notes = [note for one in estimates.values() if one.scale and one.basis != "ledger" for note in one.scale.notes]
    if not notes:
        return ""
    return f"assumed: {'; '.join(dict.fromkeys(notes))}. Rates, their sources: infra/rates.toml, infra/data_sets.toml"


def total(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Sums over a plan, and the nodes that nothing is known about."""
    return {
        "gpu_hours": sum(e.gpu_hours for e in estimates.values()),
        "core_hours": sum(e.core_hours for e in estimates.values()),
        "dollars": sum(e.dollars for e in estimates.values()),
        "flops": sum(e.flops for e in estimates.values()),
        "unknown": [name for name, e in estimates.items() if not e.basis],
        "bytes_out": sum(e.scale.bytes_out for e in estimates.values() if e.scale),
        "bytes_moved": sum(e.scale.moved for e in estimates.values() if e.scale),
        "requests": sum(e.scale.requests for e in estimates.values() if e.scale),
        "tasks": sum(e.scale.tasks for e in estimates.values() if e.scale),
    }


def total_text(estimates: Mapping[str, Estimate], plans: Sequence[NodePlan]) -> str:
    """The sums as one line for people."""
    sums = total(estimates)
    run = sum(p.will_run for p in plans)
    line = f"{counted(len(plans), 'node')}, {run} to run"
    if run:
        line += (
            f": {_hours(sums['gpu_hours'])} GPU-hours, {sums['core_hours']:,.2f} core-hours, ${sums['dollars']:,.2f}"
        )
    if sums["unknown"]:
        line += f"; no time yet for {len(sums['unknown'])} of them"
    if run:
        line += (
            f"\n{size(sums['bytes_out'])} to store, {size(sums['bytes_moved'])} through the network,"
            f" {counted(sums['requests'], 'store request')}, {counted(sums['tasks'], 'task')}"
        )
    return line
