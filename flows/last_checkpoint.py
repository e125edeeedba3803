"""The checkpoint that a training saves when it is asked to stop, against the time that it has for it: for `moxin
plan`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flows.cost import Estimate, duration
from flows.launch.base import CUT_OFF
from flows.plan import NodePlan
from flows.profiles import Profile
from flows.scale import DISK, NETWORK, rates, size
from stages.core.resources import Resources
from stages.lib.modeling.memory import FULL

COMMIT = 2.0
"""Seconds for what follows the bytes: a block of each file read back, a listing, the marker. Declared."""

TOLD = 10.0
"""Seconds from which on the plan's table says it."""


@dataclass(frozen=True)
class LastCheckpoint:
    """What stopping a node in order takes: as a rehearsal measured it, else computed. Bytes of one machine, seconds."""

    bytes: float
    disk: float
    """Writing it to local disk; the store comes after that."""
    store: float
    step: float
    """The step that is under way, which ends first."""
    grace: float
    """What the node has for all of it."""
    lost: float
    """What the checkpoint before is old at most: lost where this one does not come about."""

    @property
    def seconds(self) -> float:
        """All of it. One that is on its way to the store already comes on top."""
        return self.step + self.disk + self.store + COMMIT

    @property
    def fits(self) -> bool:
        return self.seconds <= self.grace

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"seconds": self.seconds, "fits": self.fits}

    def text(self) -> str:
        """For the plan's table; empty where there is nothing to think about."""
        if self.seconds < TOLD:
            return ""
        return f"last checkpoint {size(self.bytes)} a machine, {self.seconds:.0f} of {self.grace:.0f} s"

    def warning(self, name: str) -> str:
        """Of a node, where it does not fit."""
        enough = math.ceil(self.seconds) + CUT_OFF
        return (
            f"{name}: asked to stop, it needs {self.seconds:.0f} s for a last checkpoint ({size(self.bytes)} a"
            f" machine: a step {self.step:.1f}, to disk {self.disk:.0f}, to the store {self.store:.0f}, commit"
            f" {COMMIT:.0f}), and has {self.grace:.0f}: up to {duration(self.lost)} of training would be lost; set"
            f" resources.{name}.grace_seconds = {enough}, where the site lets a job have it"
        )


def of_node(stage: str, config: Any, resources: Resources, estimate: Estimate) -> LastCheckpoint | None:
    """Of a training that saves one when it stops; None: it saves none, or its model's size is not known.

    Engines with their own Python save by themselves, every so many steps (`cost.Estimate.lost_seconds`).
    """
    saves = stage in ("pretrain", "vlm") or (stage in ("sft", "dpo", "grpo") and config.engine == "trl")
    every = getattr(config, "checkpoint_every", None)
    if not (saves and every and estimate.parameters):
        return None
    lost, grace = estimate.lost_seconds, resources.grace_seconds - CUT_OFF
    if estimate.last_checkpoint:
        return LastCheckpoint(*estimate.last_checkpoint, estimate.step, grace, lost)
    held = 3 * FULL * estimate.parameters / resources.nodes  # weights and two moments, float32
    written = min(NETWORK, resources.cpus * rates()["store.write"]["rate"])
    return LastCheckpoint(held, held / DISK, held / written, lost / every, grace, lost)


def of_plan(
    plans: Iterable[NodePlan], profile: Profile, estimates: Mapping[str, Estimate]
) -> dict[str, LastCheckpoint]:
    """Of every node that will run and saves one."""
    sums = {
        plan.node.name: of_node(
            plan.node.stage,
            profile.configs[plan.node.name],
            profile.resources[plan.node.name],
            estimates[plan.node.name],
        )
        for plan in plans
        if plan.will_run
    }
    return {name: one for name, one in sums.items() if one is not None}


def warnings(sums: Mapping[str, LastCheckpoint]) -> Iterator[str]:
    """A line for each that does not fit."""
    return (one.warning(name) for name, one in sums.items() if not one.fits)
