"""What will stop a run, known before it starts: each stage's own problems, engines and cards that this machine lacks,
phases that overlap.

found = problems(PIPELINE, profile, ["ingest_web"])     # nothing is opened, nothing large is read: milliseconds
refuse(found)                                           # raises ConfigError: one line for each, with one remedy each
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows.data_files import DATA
from flows.profiles import Profile
from flows.scale import NodeScale
from stages.core.errors import ConfigError
from stages.core.graph import Node, Pipeline
from stages.core.interpreters import variable
from stages.core.preflight import PreflightContext, Probe, Problem

CONTAINERS = DATA / "containers"


@dataclass(frozen=True)
class Finding:
    """A problem of a node."""

    node: str
    problem: Problem

    @property
    def line(self) -> str:
        return self.problem.line(self.node)

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "node": self.node,
            "key": self.problem.key,
            "value": self.problem.value,
            "fault": self.problem.fault,
            "remedy": self.problem.remedy,
        }


def problems(pipeline: Pipeline, profile: Profile, names: Iterable[str], deep: bool = False) -> list[Finding]:
    """The problems of these nodes, in pipeline order. deep: read large files too."""
    chosen = set(names)
    findings: list[Finding] = []
    for node in profile.wire(pipeline):
        if node.name in chosen:
            context = PreflightContext(profile.launchers[node.name] == "process", deep, profile.configs)
            for problem in (
                *node.preflight(profile.configs[node.name], context),
                *_network(node, profile),
                *_engine(node, profile, context),
            ):
                findings.append(Finding(node.name, problem))
    return [
        *findings,
        *(f for f in _overlaps(pipeline, profile) if f.node in chosen),
        *_cards(profile, [name for name in pipeline.nodes if name in chosen]),
    ]


def too_large(scales: Mapping[str, NodeScale | None]) -> list[Finding]:
    """What nodes cannot do because their inputs are too large, as far as the plan knows these."""
    return [Finding(name, problem) for name, scale in scales.items() if scale for problem in scale.refusals]


def refuse(findings: list[Finding]) -> None:
    """Raise ConfigError when there are problems."""
    if findings:
        lines = list(dict.fromkeys(finding.line for finding in findings))
        raise ConfigError(
            f"{len(lines)} {'problem' if len(lines) == 1 else 'problems'} will stop this run:\n"
            + "\n".join(f"  {line}" for line in lines)
        )


def _network(node: Node, profile: Profile) -> Iterator[Problem]:
    """A node that reads from outside, and may reach the store alone: a container could not, and no launcher hands it
    the sources' credentials.
    """
    if profile.resources[node.name].network == "internet":
        return
    outside = [probe.what for probe in node.probes(profile.configs) if _leads_out(probe)]
    if outside:
        more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
        yield Problem(
            "network",
            "store",
            f"it reads {outside[0]}{more} from outside",
            f"set network = 'internet' in [resources.{node.name}]",
        )


def _leads_out(probe: Probe) -> bool:
    """Whether a source is not on this machine: an address of another scheme than file, or a data set of the hub or an
    object store that is not mirrored. A package that ships one is installed wherever the stage is.
    """
    if "data_set" in probe.request:
        return not probe.request.get("mirror") and probe.request.get("origin", "hub") in ("hub", "store")
    parts = urlsplit(probe.what)
    return bool(parts.netloc) and parts.scheme != "file"


def _engine(node: Node, profile: Profile, context: PreflightContext) -> Iterator[Problem]:
    """An engine that an attempt on this machine needs, and that is not installed on it."""
    config = profile.configs[node.name]
    engine = node.interpreter(config) or getattr(config, "engine", None)
    if not context.here or engine is None or not (CONTAINERS / engine).is_dir():
        return
    if not os.access(path := os.environ.get(variable(engine), ""), os.X_OK):
        remedy = (
            f"install it (containers/{engine}) and name its Python there, or use its image: launchers.{node.name} ="
            " 'docker'"
        )
        yield Problem(variable(engine), path or None, f"engine '{engine}' is not installed on this machine", remedy)


def _cards(profile: Profile, names: list[str]) -> Iterator[Finding]:
    """Nodes that want more cards than this machine has: one finding for all of them."""
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    short = [name for name in names if profile.launchers[name] == "process" and profile.resources[name].gpus > there]
    if short:
        most = max(profile.resources[name].gpus for name in short)
        fault = (
            f"{len(short)} nodes from {short[0]} on need {most} card{'s' * (most > 1)}, this machine has"
            f" {there or 'none'}"
        )
        yield Finding(
            short[0],
            Problem("launcher", "process", fault, "run them where cards are: launcher = 'slurm' or 'kubernetes'"),
        )


def _overlaps(pipeline: Pipeline, profile: Profile) -> Iterator[Finding]:
    """Nodes that draw the same documents of the same source without saying so: a later phase would repeat what an
    earlier one has seen.

    Ranges that a profile writes out may overlap: that is declared.
    """

    def drawn(node: Node) -> Any:
        return getattr(profile.configs[node.name], "draw", None)

    draws: dict[Any, list[tuple[Node, int, tuple[float, float]]]] = {}
    for node in pipeline:
        if hasattr(profile.configs[node.name], "draw"):
            sources = node.wires["documents"]
            for number, (source, draw) in enumerate(
                zip(sources, drawn(node) or ((0.0, 1.0),) * len(sources), strict=False)
            ):
                draws.setdefault((source.node.name, source.port), []).append((node, number, draw))
    for (name, _), drawers in draws.items():
        for (earlier, _, a), (other, number, b) in combinations(drawers, 2):
            if a[0] < b[1] and b[0] < a[1] and None in (drawn(earlier), drawn(other)):
                fault = f"{earlier.name} draws [{a[0]:g}, {a[1]:g}) of {name} too"
                yield Finding(
                    other.name,
                    Problem(
                        f"draw.{number}", f"[{b[0]:g}, {b[1]:g}]", fault, "give the phases ranges that do not overlap"
                    ),
                )
