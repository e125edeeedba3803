"""Plans and estimates of the profiles for GPUs before anything has run."""

from __future__ import annotations

import functools
from typing import Any

from flows import cost, preflight, profiles
from flows.plan import NodePlan, make_plan
from stages.core.graph import Node
from stages.pipeline import PIPELINE

PROFILES = ("small", "7b")


class NothingYet:
    """A ledger in which nothing has run."""

    def nodes(self, profile: str, skip_damaged: bool = False) -> dict[str, Any]:
        return {}

    def node(self, profile: str, name: str) -> None:
        return None

    def manifest(self, key: str, listed: bool = False) -> None:
        return None

    def lease(self, key: str) -> None:
        return None

    def checkpoint_steps(self, key: str) -> list[int]:
        return []


@functools.cache
def planned(name: str, *overrides: str) -> tuple[profiles.Profile, list[NodePlan], dict[str, cost.Estimate]]:
    """A profile's plan and estimates before anything has run. Made once, and read by many tests."""
    profile, ledger = profiles.load(name, PIPELINE, overrides), NothingYet()
    plans = make_plan(PIPELINE, profile, ledger)  # type: ignore[arg-type]
    return profile, plans, cost.estimate(plans, profile, ledger)  # type: ignore[arg-type]


def warned(name: str, *overrides: str) -> list[str]:
    """What the plan of a profile warns of."""
    profile, plans, estimates = planned(name, *overrides)
    return cost.warnings(plans, profile, estimates)


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
