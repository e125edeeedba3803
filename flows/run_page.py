"""What a run's page in Prefect says of it, made without Prefect: its name, what it does with each node, its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flows import node_form, profiles
from flows.execute import Outcome
from flows.plan import NodePlan
from flows.terminal_text import counted

RUN_NAME = 120
"""Characters of a run's name at most."""
PLAN_ABOUT, SUMMARY_ABOUT = "What this run does with each node, and why", "How the run ended"
"""Descriptions of the two artifacts that every run has."""


def run_name(parameters: Mapping[str, Any]) -> str:
    """What a run is called: its profile and experiment, what it selects, what it changes. parameters: the flow's."""
    whose = profiles.names_in(str(parameters.get("profile", "tiny")), parameters.get("experiment", ""))
    name = " ".join([whose, str(parameters.get("select", "full")), *node_form.given_overrides(parameters)])
    return name if len(name) <= RUN_NAME else f"{name[: RUN_NAME - 1]}…"


def plan_line(plan: NodePlan) -> str:
    """A node of the plan as a line of the run's log."""
    return f"{plan.node.name:<20} {plan.state.value:<8} {plan.reason}"


def plan_rows(plans: Iterable[NodePlan]) -> list[dict[str, str]]:
    """The plan as the rows of a table."""
    return [{"node": p.node.name, "state": p.state.value, "reason": p.reason, "key": (p.key or "")[:12]} for p in plans]


def summary(outcomes: Mapping[str, Outcome], failures: Mapping[str, str]) -> str:
    """The end of a run as Markdown: how long each node took, and what went wrong."""
    lines = ["| node | | seconds |", "| --- | --- | ---: |"]
    lines += [f"| {name} | {'cached' if o.cached else 'ran'} | {o.seconds:.1f} |" for name, o in outcomes.items()]
    lines += [f"| {name} | failed | |" for name in failures]
    if failures:  # what a stage says is text, not Markdown
        lines += ["", "```text", *(message.replace("`", "'") for message in failures.values()), "```"]
    return "\n".join(lines)


def completed(outcomes: Mapping[str, Outcome]) -> str:
    """What is said of a run that ended well."""
    ran = sum(not outcome.cached for outcome in outcomes.values())
    return f"{counted(ran, 'node')} ran, {len(outcomes) - ran} answered from the ledger"
