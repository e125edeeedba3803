"""`moxin plan` and `moxin why`: what a run would do."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.common import (
    BudgetOption,
    ExperimentOption,
    ForceOption,
    JsonOption,
    LauncherOption,
    NodeArgument,
    ProfileOption,
    SelectOption,
    SetOption,
    all_overrides,
    find_node,
    open_ledger,
    out,
    plan_nodes,
    print_json,
    print_problems,
    say,
)

if TYPE_CHECKING:
    from flows.cost import Estimate
    from flows.plan import NodePlan
    from flows.preflight import Finding


def plan(
    profile: ProfileOption = "tiny",
    select: SelectOption = "full",
    set_: SetOption = [],  # noqa: B006
    force: ForceOption = False,
    launcher: LauncherOption = None,
    experiment: ExperimentOption = "",
    budget: BudgetOption = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="look for every file in the store, not for the pages that list many files")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Say what a run would do with each node, at what cost.

    Ends with 1 when something stands in the run's way: a problem that stops it, memory or disk that its machines have
    not, or a budget that does not do.
    """
    from flows import cost, credentials, last_checkpoint, preflight, spending
    from flows.rehearsal import planning as rehearsals
    from stages.pipeline import PIPELINE

    spending.check_amount(budget)
    with _ledger() as (ledger, notes):
        plans, values = plan_nodes(ledger, profile, select, all_overrides(set_, launcher), force, deep, experiment)
        estimates = cost.estimate(plans, values, ledger)
        notes += rehearsals.take(plans, values, estimates, None if notes else ledger.store)
    findings = preflight.problems(PIPELINE, values, [p.node.name for p in plans if p.will_run])
    findings += preflight.too_large({name: one.scale for name, one in estimates.items()})
    limits, stops = cost.limits(plans, values, estimates), last_checkpoint.of_plan(plans, values, estimates)
    prices = spending.costs(plans, values, estimates) if budget else []
    if budget and (why := spending.refusal(prices, budget)):
        limits.append(why)
    warnings = [*notes, *limits, *cost.warnings(plans, values, estimates)]
    warnings += [*credentials.expiring(plans, values, estimates, os.environ), *last_checkpoint.warnings(stops)]
    if json_:
        print_json(
            {
                "profile": values.name,
                "experiment": values.experiment or None,
                "problems": [f.row() for f in findings],
                "limits": limits,
                "warnings": warnings,
                "nodes": _rows(plans, values, estimates, stops),
                "total": cost.total(estimates),
                "budget": {"dollars": budget, "nodes": [row.row() for row in prices]} if budget else None,
            }
        )
    else:
        texts = {
            name: "; ".join(filter(None, (e.text(), rehearsals.mark(e), stops[name].text() if name in stops else "")))
            for name, e in estimates.items()
        }
        _print_plan(plans, estimates, texts, warnings, findings)
        if budget:
            _print_budget(budget, prices)
    if findings or limits:
        raise typer.Exit(1)


def _rows(
    plans: list[NodePlan], values: Any, estimates: Mapping[str, Estimate], stops: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Of every node, as JSON values."""
    return [
        p.row()
        | {
            "estimate": estimates[p.node.name].row(),
            "resumes": p.node.resumes(values.configs[p.node.name]),
            "last_checkpoint": stops[p.node.name].row() if p.node.name in stops else None,
        }
        for p in plans
    ]


@contextmanager
def _ledger() -> Generator[tuple[Any, list[str]]]:
    """The ledger, and what is to be said of it: before there is a store nothing has run, and a plan needs no more."""
    from flows.empty_ledger import EmptyLedger
    from flows.settings import NoStore, Settings

    try:
        settings = Settings.load()
    except NoStore as error:
        yield EmptyLedger(), [f"planned as if nothing had run: {error}"]
        return
    with open_ledger(settings) as ledger:
        yield ledger, []


def _print_plan(
    plans: list[NodePlan],
    estimates: Mapping[str, Estimate],
    texts: dict[str, str],
    warnings: list[str],
    findings: list[Finding],
) -> None:
    from flows import cost
    from flows.console import plan_table

    out.print(plan_table(plans, texts))
    out.print(cost.total_text(estimates, plans))
    if assumed := cost.assumptions(estimates):
        out.print(assumed, soft_wrap=True)
    for warning in warnings:
        out.print(f"warning: {warning}", markup=False, highlight=False)
    print_problems(findings, "will stop this run")


def _print_budget(budget: float, prices: Sequence[Any]) -> None:
    from flows import spending
    from flows.console import rows_table

    out.print(f"\nbudget {spending.money(budget)}:")
    out.print(rows_table(spending.table(prices)))


def why(
    node: NodeArgument,
    profile: ProfileOption = "tiny",
    set_: SetOption = [],  # noqa: B006
    experiment: ExperimentOption = "",
    json_: JsonOption = False,
) -> None:
    """Say which field, input or code makes a node run, or why not."""
    name = find_node(node).name
    with open_ledger() as ledger:
        plans, _ = plan_nodes(ledger, profile, f"+{name}", set_, experiment=experiment)
    rows = {p.node.name: p for p in plans}
    target = rows[name]
    roots = (
        [p for p in plans if p.will_run and p.state.value != "pending" and p is not target]
        if target.state.value == "pending"
        else []
    )
    if json_:
        print_json(target.row() | {"because": [p.row() for p in roots]})
        return
    say(f"{name}: ", (target.state.value, "bold"), f": {target.reason}")
    for cause in roots:
        say(f"  {cause.node.name}: {cause.state.value}: {cause.reason}")
