"""`moxin plan` and `moxin why`: what a run would do."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.common import (
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


def plan(
    profile: ProfileOption = "tiny",
    select: SelectOption = "full",
    set_: SetOption = [],  # noqa: B006
    force: ForceOption = False,
    launcher: LauncherOption = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="look for every file in the store, not for the pages that list many files")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Show what a run would do with each node, what it would cost, and why."""
    from flows import cost, preflight
    from flows.console import plan_table
    from stages.pipeline import PIPELINE

    with open_ledger() as ledger:
        plans, values = plan_nodes(profile, select, all_overrides(set_, launcher), force, deep)
        estimates = cost.estimate(plans, values, ledger)
    findings = preflight.problems(PIPELINE, values, [p.node.name for p in plans if p.will_run])
    warnings = cost.warnings(plans, values, estimates)
    if json_:
        nodes = [
            p.row() | {"estimate": estimates[p.node.name].row(), "resumes": p.node.resumes(values.configs[p.node.name])}
            for p in plans
        ]
        print_json(
            {
                "profile": values.name,
                "problems": [f.row() for f in findings],
                "warnings": warnings,
                "nodes": nodes,
                "total": cost.total(estimates),
            }
        )
        return
    out.print(plan_table(plans, {name: e.text() for name, e in estimates.items()}))
    out.print(cost.total_text(estimates, plans))
    if assumed := cost.assumptions(estimates):
        out.print(assumed, soft_wrap=True)
    for warning in warnings:
        out.print(f"warning: {warning}", markup=False, highlight=False)
    print_problems(findings, "will stop this run")


def why(
    node: NodeArgument,
    profile: ProfileOption = "tiny",
    set_: SetOption = [],  # noqa: B006
    json_: JsonOption = False,
) -> None:
    """Say which field, input or code makes a node run (or why it does not)."""
    name = find_node(node).name
    plans, _ = plan_nodes(profile, f"+{name}", set_)
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
