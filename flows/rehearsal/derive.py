"""A profile -> the profile of its rehearsal: the same nodes, launchers, engines, sources and kinds of parallelism, with
what each stage declares to be enough work (`stages.core.shrinking`).

What cannot be had where it runs has a stand-in, which the report names, or the node is out of reach.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows import profiles
from flows.profile_checks import ONE_MACHINE
from flows.profiles import Profile
from flows.rehearsal.report import name_of
from flows.terminal_text import counted
from stages.core.config import StageConfig
from stages.core.errors import ConfigError
from stages.core.graph import Node, Pipeline
from stages.core.resources import Processes, Resources
from stages.core.shrinking import Level, Rehearsal, shrunk
from stages.lib.modeling.shape import ModelShape

NODES = 2
"""Machines of a training, at most: two have everything between machines that eight have."""
TRAINING_BYTES = 20
"""A parameter's float32 weights, gradient and moments, and some for the rest: what a layer has to find room for on a
processor."""
VOCABULARY = 32_000


@dataclass(frozen=True)
class Machine:
    """Where stages of launcher `process` run."""

    cores: int
    memory_gib: float
    cards: int

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return cls(os.cpu_count() or 1, memory, len(list(Path("/dev").glob("nvidia[0-9]*"))))

    @property
    def text(self) -> str:
        """For people."""
        return f"{counted(self.cores, 'core')}, {self.memory_gib:.0f} GiB, {counted(self.cards, 'GPU')}"


@dataclass(frozen=True)
class Derived:
    """A rehearsal, and where it differs from the profile in kind, not only in amount."""

    profile: Profile
    level: Level
    stand_ins: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, "tuple[str, ...]"])
    """By node: what stands for what, one phrase each."""
    out_of_reach: Mapping[str, str] = field(default_factory=dict[str, str])
    """By node: why it cannot be rehearsed here."""
    unlike: frozenset[str] = frozenset()
    """Nodes whose numbers say nothing of the real machines."""


def derive(
    profile: Profile, pipeline: Pipeline, level: Level, machine: Machine | None = None, processors: bool = False
) -> Derived:
    """The rehearsal of a profile. processors: no node gets a GPU, wherever it runs.

    Nodes of launcher `process` get no more GPUs than the machine has. Raises ConfigError when a stage's rules make a
    configuration that is not valid, which is a fault in them.
    """
    machine = machine or Machine.here()
    configs: dict[str, StageConfig] = {}
    resources: dict[str, Resources] = {}
    stand_ins: dict[str, tuple[str, ...]] = {}
    out_of_reach: dict[str, str] = {}
    unlike: set[str] = set()
    for node in pipeline:
        config, given = profile.configs[node.name], profile.resources[node.name]
        small, notes = _resources(node, config, given, profile.launchers[node.name], machine, processors)
        bare = bool(given.gpus) and not small.gpus
        try:
            config = shrunk(config, Rehearsal(level, small.nodes * small.ranks))
            if bare or processors:
                config, changed = _on_processors(config, machine, small, level)
                notes += changed
                if bare or changed:
                    unlike.add(node.name)
            node.check_resources(node.name, config, small)
        except (ValidationError, ConfigError) as error:
            why = (
                error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else error
            )
            if not bare:
                raise ConfigError(f"the {level} rehearsal of {node.name}: {why}") from error
            out_of_reach[node.name] = f"it needs {given.gpus} GPUs a machine, and there are none: {why}"
        configs[node.name], resources[node.name] = config, small
        if notes:
            stand_ins[node.name] = tuple(notes)
    alone = level == "shape" and set(profile.launchers.values()) <= set(ONE_MACHINE)
    changes = {"on_drift": "rerun", "retries": 1, "patience": 60.0} | ({"parallel": 1} if alone else {})
    settings = profile.settings.model_copy(update=changes)
    rehearsal = replace(
        profile, name=name_of(profile.name, level), settings=settings, configs=configs, resources=resources
    )
    return Derived(rehearsal, level, stand_ins, out_of_reach, frozenset(unlike))


def _resources(
    node: Node, config: StageConfig, given: Resources, launcher: str, machine: Machine, processors: bool
) -> tuple[Resources, list[str]]:
    """What a node may use, with the same kinds of processes, and what stands for what."""
    values: dict[str, Any] = {"nodes": min(given.nodes, NODES)}
    notes: list[str] = []
    if processors:
        memory = max(1.0, machine.memory_gib // 2)  # whole: a site's node of half a machine has no more
        values |= {"cpus": min(given.cpus, machine.cores), "memory_gib": min(given.memory_gib, memory)}
        values["scratch_gib"] = min(given.scratch_gib, 10)
    here = 0 if processors else machine.cards
    if given.gpus and (processors or launcher == "process") and here < given.gpus:
        gpus = next((count for count in range(here, 0, -1) if given.gpus % count == 0), 0)
        values |= {"gpus": gpus, "nproc_per_node": 1}
        if not gpus and node.processes(config) is Processes.TORCHRUN:
            sizes = getattr(config, "parallel", None)
            shared = min(2, getattr(sizes, "tensor", 1)) * min(2, getattr(sizes, "pipeline", 1))
            ranks = min(given.nodes * given.ranks, max(2, shared))
            values["nproc_per_node"] = max(1, ranks // values["nodes"])
        if gpus:
            notes.append(f"{gpus} of {given.gpus} GPUs a machine")
        else:
            count = values["nproc_per_node"]
            what = f"{count} process{'es' * (count > 1)} without a GPU"
            notes.append(f"{what} for {given.gpus} GPU{'s' * (given.gpus > 1)} a machine")
    if values["nodes"] < given.nodes:
        notes.append(f"{values['nodes']} of {given.nodes} machines")
    return given.model_copy(update=values), notes


def _on_processors(
    config: StageConfig, machine: Machine, resources: Resources, level: Level
) -> tuple[StageConfig, list[str]]:
    """The configuration without GPUs: full precision, and no more layers than find room. Raises ValidationError where
    its engine has no other way.
    """
    values = {name: getattr(config, name) for name in type(config).model_fields}
    notes: list[str] = []
    for name, there in (("device", "cpu"), ("precision", "fp32")):
        if name in values and values[name] != there and not (name == "device" and values[name] == "auto"):
            notes.append(f"{name} {there} for {values[name]}")
            values[name] = there
    shape = values.get("shape")
    if isinstance(shape, ModelShape) and level == "shape":
        room = int(machine.memory_gib * 0.6 * 2**30 / (TRAINING_BYTES * resources.ranks))
        layers = next((n for n in range(shape.layers, 1, -1) if _parameters(shape, n) <= room), 1)
        if layers < shape.layers:
            notes.append(f"{layers} of {shape.layers} layers: more have no room")
            values["shape"] = shape.model_copy(update={"layers": layers})
    return type(config).model_validate(values), notes


def _parameters(shape: ModelShape, layers: int) -> int:
    return shape.model_copy(update={"layers": layers}).parameters(VOCABULARY)


def load(
    name: str, pipeline: Pipeline, level: Level, overrides: tuple[str, ...] = (), processors: bool = False
) -> tuple[Profile, Derived]:
    """A profile by its name, and its rehearsal. Raises ConfigError."""
    profile = profiles.load(name, pipeline, overrides)
    return profile, derive(profile, pipeline, level, processors=processors)
