"""Plans and estimates of the profiles for GPUs before anything has run."""

from __future__ import annotations

import functools

from flows import cost, preflight, profiles
from flows.empty_ledger import EmptyLedger
from flows.plan import NodePlan, make_plan
from stages.core.graph import Node
from stages.pipeline import PIPELINE

PROFILES = ("small", "7b")


@functools.cache
def planned(name: str, *overrides: str) -> tuple[profiles.Profile, list[NodePlan], dict[str, cost.Estimate]]:
    """A profile's plan and estimates before anything has run. Made once, and read by many tests."""
    profile, ledger = profiles.load(name, PIPELINE, overrides), EmptyLedger()
    plans = make_plan(PIPELINE, profile, ledger)
    return profile, plans, cost.estimate(plans, profile, ledger)


def warned(name: str, *overrides: str) -> list[str]:
    """What the plan of a profile warns of."""
    profile, plans, estimates = planned(name, *overrides)
    return [*cost.limits(plans, profile, estimates), *cost.warnings(plans, profile, estimates)]


def refused(name: str, *overrides: str) -> list[str]:
    """For what a profile's corpora are too large."""
    _, _, estimates = planned(name, *overrides)
    return [finding.line for finding in preflight.too_large({node: one.scale for node, one in estimates.items()})]


def trainings(profile: profiles.Profile) -> list[Node]:
    """Nodes that train on GPUs."""
    return [
        node
        for node in PIPELINE
        if node.stage in ("pretrain", "sft", "dpo", "grpo", "vlm") and profile.resources[node.name].gpus
    ]
