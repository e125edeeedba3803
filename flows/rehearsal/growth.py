"""What the nodes of a real run make, by what their rehearsals made: for the sums of nodes after them, where a stage's
own sums need what is not known before anything has run.

A node's outputs are taken to grow with what it reads; a count that its settings ask for bounds that. So a chain of
nodes is reckoned from its first, and what an interval cannot say of a filter that thins a larger input more, it does
not say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flows import scale
from flows.rehearsal.report import NodeReport
from stages.core.artifacts import ArtifactManifest
from stages.core.config import OPERATIONAL
from stages.core.scale import Amounts
from stages.core.shrinking import Shrinks

COUNTS = ("bytes", "files", "source_bytes", "documents", "text_bytes", "tokens", "windows", "rows", "images")
"""What grows."""
EVERYTHING = 1e18
"""How many times more a setting asks for that bounds nothing."""


def held(manifest: ArtifactManifest) -> dict[str, float]:
    """What an output of a rehearsal holds, as far as it is counted."""
    return {name: float(value) for name, value in scale.held(manifest).items() if name in COUNTS}


def asked_more(real: BaseModel, small: BaseModel) -> float:
    """How many times more a node's own settings ask for than those of its rehearsal: of the count that grew most; 0:
    they ask for no count, or for as many.
    """
    return max(_ratios(real, small), default=0.0)


def asked(config: BaseModel) -> float:
    """How much a node that makes its rows by itself is asked to make: the counts among its settings, together."""
    counts: list[float] = []
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if _counts(info) and isinstance(value, int | float):
            counts.append(float(value))
    return sum(counts)


def _counts(info: FieldInfo) -> bool:
    return any(isinstance(rule, Shrinks) for rule in info.metadata) and OPERATIONAL not in info.metadata


def _ratios(real: Any, small: Any) -> Iterator[float]:
    if isinstance(real, BaseModel):
        for name, info in type(real).model_fields.items():
            before, after = getattr(real, name), getattr(small, name)
            yield from _ratios(before, after)
            if _counts(info) and isinstance(after, int | float) and after:
                more = EVERYTHING if before is None else before / after if isinstance(before, int | float) else 0.0
                if more > 1:
                    yield more
    elif isinstance(real, tuple):
        for one, other in zip(cast("tuple[Any, ...]", real), small, strict=False):
            yield from _ratios(one, other)


def outputs(node: NodeReport | None, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Mapping[str, Amounts]:
    """What a node makes of these inputs; {}: its rehearsal does not tell."""
    if node is None or node.state != "passed" or node.unlike:
        return {}
    more = growth(node, inputs)
    return {
        port: {name: value * more for name, value in amounts.items()} for port, amounts in node.outputs.items() if more
    }


def growth(node: NodeReport, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> float:
    """How many times more a node makes than its rehearsal did; 0: that is not known."""
    read = sum(float(scale.held(one).get("bytes", math.nan)) for many in inputs.values() for one in many)
    by_inputs = read / node.read_bytes if node.read_bytes else 0.0
    if inputs and not by_inputs > 0:  # not a number, too
        return 0.0
    bounds = [ratio for ratio in (by_inputs, node.asked) if ratio]
    return min(bounds) if bounds else 1.0
