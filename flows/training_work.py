"""How much work a training or an evaluation is, by its configuration and what it reads: steps, rows, questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flows.plan import NodePlan
from flows.profiles import Profile
from flows.scale import data_sets
from stages.core.artifacts import ArtifactManifest
from stages.core.graph import Node


def steps_of(config: Any, rows: int) -> int:
    """Optimizer steps of a training by its configuration, and the rows that it learns from; 0: not known."""
    if (phases := getattr(config, "context_phases", None)) is not None:
        return sum(phase.steps for phase in phases)
    if (steps := getattr(config, "steps", None)) is not None:
        return int(steps)
    batch = getattr(config, "global_batch_size", None)
    return -(-rows // batch) * config.epochs if rows and batch else 0


def responses_of(config: Any, step: int) -> int:
    """Responses that are written for a step (from 1) of a reinforcement; 0: the phases have no such step."""
    for phase in getattr(config, "context_phases", ()):
        if step <= phase.steps:
            return phase.num_generations * config.prompts_per_step
        step -= phase.steps
    return 0


def longest_of(config: Any, step: int) -> float:
    """Tokens of the responses of a step (from 1) of a reinforcement, each as long as can be; 0: there is none such."""
    for phase in getattr(config, "context_phases", ()):
        if step <= phase.steps:
            return float(phase.num_generations * config.prompts_per_step * phase.max_response_length)
        step -= phase.steps
    return 0.0


def rows_of(config: Any, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> int:
    """Rows that a training reads in one pass; 0: it reads none, or that is not known."""
    rows = sum(int(m.meta.get("rows", 0)) for port in ("conversations", "preferences") for m in inputs.get(port, ()))
    return min(rows, getattr(config, "max_rows", None) or rows)


def measuring_of(node: Node, config: Any, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> tuple[float, float]:
    """FLOPs of reading and of writing to measure what a training made; 0: none, or not known."""
    one = node.measuring(config, inputs)
    return (one.flops, one.written_flops) if one else (0.0, 0.0)


def heldout_tokens(config: Any) -> float:
    """What the held-out losses within a pre-training amount to, in tokens of training: a forward pass is a third."""
    every, windows = getattr(config, "eval_every", 0), getattr(config, "eval_windows", 0)
    if not (every and windows and hasattr(config, "steps")):
        return 0.0
    return math.ceil(config.steps / every) * windows * config.sequence_length / 3


def source_rows(source: Any) -> int | None:
    """Rows of one source of a mixture: what it is capped at, else what the set is known to have."""
    name = getattr(source, "data_set", None) or getattr(source, "name", None)
    if name is None:
        return None
    known = data_sets()["rows"]
    setting, cap = getattr(source, "config", "default"), getattr(source, "cap", None)
    rows = known.get(name if setting == "default" else f"{name}:{setting}")
    if rows is None:
        return cap
    rows = int(rows * getattr(source, "fraction", 1.0)) // (getattr(source, "every", None) or 1)
    return min(rows, cap) if cap else rows


def questions_of(plan: NodePlan, profile: Profile) -> int:
    """That a data set of a node's suites asks, where they are made here; 0: not known."""
    sources = [source for port in ("suites", "suite") for source in plan.node.wires.get(port, ())]
    suites: list[Any] = [profile.configs[source.node.name] for source in sources]
    return max([_made_questions(one) for one in suites], default=0)


def _made_questions(suite: Any) -> int:
    if getattr(suite, "origin", "") == "machine":
        return int(suite.test_questions)
    sets: Mapping[str, Any] = getattr(suite, "data_sets", None) or {}
    return int(suite.questions) if any(one.origin == "machine" for one in sets.values()) else 0
