"""What is known of a rehearsal before it begins: which nodes have faults, which are out of reach, which are not reached
for their sake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flows.preflight import Finding
from flows.profiles import Profile
from flows.rehearsal.derive import Derived
from flows.rehearsal.report import Fault
from stages.core.graph import Node, Pipeline

_ENGINE_PYTHON = re.compile(r"MOXIN_[A-Z_]+_PYTHON")
_NODE = re.compile(r"\bnode (\w+)|^(\w+)[.:]")


@dataclass
class Findings:
    """Of the nodes that were chosen."""

    faults: dict[str, list[Fault]] = field(default_factory=dict[str, "list[Fault]"])
    out_of_reach: dict[str, str] = field(default_factory=dict[str, str])
    general: list[Fault] = field(default_factory=list[Fault])
    """What belongs to no node."""

    def add(self, node: str, fault: Fault) -> None:
        """A fault of a node, once."""
        faults = self.faults.setdefault(node, [])
        if fault not in faults:
            faults.append(fault)

    def kept(self, chosen: Sequence[str]) -> Findings:
        """Those of some nodes."""
        return Findings(
            {name: faults for name, faults in self.faults.items() if name in chosen},
            {name: why for name, why in self.out_of_reach.items() if name in chosen},
            self.general,
        )


def sorted_out(findings: Iterable[Finding], derived: Derived, pipeline: Pipeline) -> Findings:
    """By node. A launcher that is away, an image that is missing and an engine that is not installed here concern every
    node that needs them.
    """
    out = Findings(out_of_reach=dict(derived.out_of_reach))
    for finding in findings:
        problem = finding.problem
        what = f"{problem.key} = {problem.value}" if problem.value else problem.key
        said = problem.fault.removeprefix(f"{problem.value}: ")  # by a reader that names what it reads
        fault = Fault(cause=f"{what}: {said}", remedy=problem.remedy)
        if _ENGINE_PYTHON.fullmatch(problem.key):
            out.out_of_reach.setdefault(finding.node, f"{problem.fault}; to reach it: {problem.remedy}")
        elif problem.key == "launcher":
            for name in _with_launcher(derived.profile, finding.node):
                out.out_of_reach.setdefault(
                    name, f"launcher '{problem.value}': {problem.fault}; to reach it: {problem.remedy}"
                )
        elif problem.key == "image":
            for node in pipeline:
                if node.stage == pipeline[finding.node].stage:
                    out.add(node.name, fault)
        else:
            out.add(finding.node, fault)
    return out


def _with_launcher(profile: Profile, node: str) -> list[str]:
    return [name for name, used in profile.launchers.items() if used == profile.launchers[node]]


def add_lines(findings: Findings, lines: Iterable[str], nodes: Sequence[str], remedy: str) -> None:
    """Faults that are told as lines which begin with a node's name: limits of the plan, settings that do not fit."""
    for line in lines:
        name, cause = node_of(line, nodes), line
        if name is None:
            findings.general.append(Fault(cause=cause, remedy=remedy))
        else:
            findings.add(name, Fault(cause=cause.removeprefix(f"{name}: "), remedy=remedy))


def node_of(line: str, nodes: Sequence[str]) -> str | None:
    """The node that a message names."""
    for groups in _NODE.findall(line):
        for name in groups:
            if name in nodes:
                return name
    return next((word for word in re.findall(r"\w+", line) if word in nodes), None)


def reachable(
    pipeline: Pipeline, chosen: Sequence[Node], blocked: Mapping[str, object]
) -> tuple[list[str], dict[str, list[str]]]:
    """The chosen nodes that can be run, in order, and the others that follow a blocked one, with which."""
    names: list[str] = []
    waits: dict[str, list[str]] = {}
    for node in chosen:
        if node.name in blocked:
            continue
        behind = [parent for parent in node.parents if parent in blocked or parent in waits]
        if behind:
            waits[node.name] = behind
        else:
            names.append(node.name)
    return names, waits
