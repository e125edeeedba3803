"""docs/scale.md's tables: every node of `7b`, of DCLM's pool at 10^10 documents and of 15 T tokens, by the code of the
plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from flows import cost, profiles
from flows.plan import NodePlan, State
from flows.profiles import Profile
from flows.scale import BLOCK, NETWORK, rates, size
from stages.core.scale import Amounts
from stages.pipeline import PIPELINE

CRAWL = {"source_bytes": 370e12, "files": 5.1e6, "documents": 200e9, "text_bytes": 1e15}
"""DCLM-Pool: 200 G documents of 240 T tokens, 370 TB with gzip, 5.1 M files (arXiv 2406.11794); of 5 kB (declared)."""
POOL_DOCUMENTS = 1e10
COLUMNS = (
    "node",
    "reads",
    "writes",
    "spills",
    "disk / declared",
    "memory / declared",
    "tasks",
    "requests",
    "work",
    "time on",
    "by",
)
LONG_TOKENS = 15_000_000_000_000


@dataclass(frozen=True)
class Case:
    """One size that is worked out."""

    title: str
    said: str
    overrides: tuple[str, ...] = ()
    web: Amounts | None = None
    """What the raw web holds, instead of what `7b` names."""
    nodes: tuple[str, ...] | None = None
    """Of these alone; None: all."""


WEB = ("ingest_web", "dedup_web", "quality_web")
POOL = {name: value * POOL_DOCUMENTS / CRAWL["documents"] for name, value in CRAWL.items()}
CASES = (
    Case("`7b` as it is", "Every node, with the resources of the profile."),
    Case(
        "DCLM's pool at 10^10 documents",
        "A twentieth of DCLM-Pool, through the web branch with `7b`'s settings and machines.",
        web=POOL,
        nodes=WEB,
    ),
    Case(
        "15 T tokens",
        "The whole of DCLM-Pool, from which DCLM-BASELINE drew 4 T tokens: quality keeps 0.55 instead of a tenth,\n"
        "dedup deals it out to 200 partitions, three quarters are packed at one length, `7b`'s machines train once.",
        overrides=(
            "quality_web.keep_fraction=0.55",
            "dedup_web.partitions=200",
            f"tokenize_short.max_tokens={LONG_TOKENS}",
            f"pretrain_1.tokens={LONG_TOKENS}",
        ),
        web=CRAWL,
        nodes=(*WEB, "tokenize_short", "pretrain_1"),
    ),
)


def tables() -> str:
    """All cases, and the rates that they rest on, as Markdown."""
    return "\n".join([*(_case(case) for case in CASES), _rates()])


def _case(case: Case) -> str:
    profile = profiles.load("7b", PIPELINE, case.overrides)
    pipeline = profile.wire(PIPELINE)
    plans = [NodePlan(node, State.RUN, "", True, True) for node in pipeline]
    estimates = cost.estimate(plans, profile, None, {"web": case.web} if case.web else None)
    shown = [plan for plan in plans if case.nodes is None or plan.node.name in case.nodes]
    lines = [f"## {case.title}", "", case.said, ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(['---', *['---:'] * 8, '---', '---'])} |"]
    lines += [_row(plan, profile, estimates[plan.node.name]) for plan in shown]
    warned = [
        text
        for text in cost.limits(shown, profile, estimates)
        if "local disk" in text or "of memory" in text or "tasks:" in text
    ]
    if warned:
        lines += ["", "Said by the plan:", "", *(f"- {text}" for text in warned)]
    return "\n".join(lines) + "\n"


def _row(plan: NodePlan, profile: Profile, one: cost.Estimate) -> str:
    scale, resources = one.scale, profile.resources[plan.node.name]
    assert scale is not None
    reads = scale.bytes_in + scale.outside
    machine = f"{resources.nodes} x " * (resources.nodes > 1) + (
        f"{resources.gpus} GPU" if resources.gpus else f"{resources.cpus:g} cores"
    )
    work = (
        f"{one.gpu_hours:,.{0 if one.gpu_hours >= 10 else 2}f} GPU-h"
        if one.gpu_hours
        else f"{one.core_hours:,.{0 if one.core_hours >= 10 else 2}f} core-h"
        if one.core_hours
        else ""
    )
    hours = f"{cost.duration(one.seconds)} on {machine}" if one.basis else one.untimed
    cells = [
        plan.node.name,
        size(reads) if reads else "",
        size(scale.bytes_out) if scale.bytes_out else "",
        size(scale.spilled) if scale.spilled else "",
        f"{size(scale.disk)} / {size(resources.scratch_gib * 2**30)}",
        f"{size(scale.memory)} / {size(resources.memory_gib * 2**30)}" if scale.memory else "",
        f"{scale.tasks:,.0f}",
        f"{scale.requests:,.0f}",
        work,
        hours,
        ", ".join(scale.rates) or (one.basis or ""),
    ]
    return f"| {' | '.join(cells)} |"


def _rates() -> str:
    rows = ["## Rates", "", "One core; a machine's network is taken as 10 Gbit/s, a request as 16 MiB.", ""]
    assert (NETWORK, BLOCK) == (1.25e9, 16 << 20)
    rows += ["| rate | a core-second | unit | source |", "| --- | ---: | --- | --- |"]
    rows += [f"| {name} | {one['rate']:,.0f} | {one['unit']} | {one['source']} |" for name, one in rates().items()]
    return "\n".join(rows) + "\n"
