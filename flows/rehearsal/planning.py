"""What a plan takes from rehearsals: measured numbers instead of computed ones, and a warning where there is none, or
an old one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flows import cost
from flows.cost import Estimate
from flows.plan import NodePlan
from flows.profiles import Profile
from flows.rehearsal import growth, report
from flows.rehearsal.forecast import REHEARSED, as_estimate, forecast
from flows.rehearsal.report import Forecast, RehearsalReport
from stages.core.keys import source_digest
from stages.core.ledger import Ledger
from stages.core.shrinking import LEVELS, Level
from stages.core.store import Store

DEAR = 100.0
"""Dollars of a plan from which it should be rehearsed first."""


def take(plans: Sequence[NodePlan], profile: Profile, estimates: dict[str, Estimate], store: Store | None) -> list[str]:
    """Put what was measured in the place of estimates; what there is to say of it. store: None: there is none yet."""
    reports = report.read_all(store, profile.name) if store else {}
    estimates |= measured(plans, profile, estimates, reports)
    return warnings(plans, profile, estimates, reports)


def estimates(plans: Sequence[NodePlan], profile: Profile, ledger: Ledger) -> dict[str, Estimate]:
    """What each node would cost: by its last result, else as rehearsals measured it, else computed."""
    computed = cost.estimate(plans, profile, ledger)
    return computed | measured(plans, profile, computed, report.read_all(ledger.store, profile.name))


def mark(estimate: Estimate) -> str:
    """Where a node's numbers come from, if that is a rehearsal."""
    return f"measured by its {estimate.basis}" if estimate.basis.startswith(REHEARSED) else ""


def measured(
    plans: Sequence[NodePlan],
    profile: Profile,
    estimates: Mapping[str, Estimate],
    reports: Mapping[Level, RehearsalReport],
) -> dict[str, Estimate]:
    """The estimates of nodes that rehearsals tell more about than sums do. A result of the node itself tells more."""
    run = {plan.node.name for plan in plans if plan.will_run and estimates[plan.node.name].basis != "last result"}
    return {
        name: as_estimate(one, reports["shape"].at, estimates[name])
        for name, one in forecasts(plans, profile, reports).items()
        if name in run
    }


def forecasts(
    plans: Sequence[NodePlan], profile: Profile, reports: Mapping[Level, RehearsalReport]
) -> dict[str, Forecast]:
    """What each node takes, by what rehearsals measured of it. How much it is, they tell too, where sums do not."""
    if "shape" not in reports:
        return {}
    prices = cost.prices_of(profile)
    shape = {node.node: node for node in reports["shape"].nodes}
    wiring = {node.node: node for node in reports["wiring"].nodes} if "wiring" in reports else {}
    estimates = cost.estimate(plans, profile, None, grown=lambda name, inputs: growth.outputs(shape.get(name), inputs))
    out: dict[str, Forecast] = {}
    for plan in plans:
        name = plan.node.name
        one = forecast(
            profile.configs[name],
            profile.resources[name],
            estimates[name],
            prices,
            shape.get(name),
            wiring.get(name),
        )
        if one is not None:
            out[name] = one
    return out


def warnings(
    plans: Sequence[NodePlan],
    profile: Profile,
    estimates: Mapping[str, Estimate],
    reports: Mapping[Level, RehearsalReport],
) -> list[str]:
    """What a plan that costs something has to say of its rehearsal: none, a failed one, one of other code or values."""
    run = [plan for plan in plans if plan.will_run]
    dear = sum(estimates[plan.node.name].dollars for plan in run) >= DEAR
    if not dear and not any(profile.resources[plan.node.name].gpus for plan in run):
        return []
    advice = f"'moxin rehearse --profile {profile.name}' runs it small, where it is meant to run"
    if not reports:
        return [f"this plan was never rehearsed: {advice}"]
    lines: list[str] = []
    names = {plan.node.name for plan in run}
    code = {plan.node.stage: source_digest(plan.node.stage) for plan in run}
    digest = report.profile_digest(profile.configs, profile.resources)
    for level in LEVELS:
        if (one := reports.get(level)) is None:
            continue
        what = f"the {level} rehearsal of {one.at[:10]}"
        if one.profile_digest != digest:
            lines.append(f"{what} was of other settings than these: rehearse again")
        if other := [stage for stage in sorted(code) if one.code.get(stage) != code[stage]]:
            lines.append(f"{what} was of other code: {', '.join(other)}: rehearse again")
        if failed := [node.node for node in one.failed if node.node in names]:
            lines.append(f"{what} failed at {', '.join(failed)}")
        passed = {node.node for node in one.nodes if node.state == "passed"}
        if level == "wiring" and (left := [plan.node.name for plan in run if plan.node.name not in passed]):
            lines.append(f"{what} did not pass {len(left)} of {len(run)} nodes, {left[0]} first")
    return lines
