"""How large a stage's work is: what becomes of its inputs, in which pieces, at which rates. Declared beside
`Stage.work`, worked out by `moxin plan` (flows/scale.py) before anything is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stages.core.artifacts import ArtifactManifest
from stages.core.preflight import Problem

Amounts = Mapping[str, float]
"""What an artifact holds: `bytes` and `files` stored, `documents`, `text_bytes`, `tokens`, `rows`, `images`; a listing
of raw files: `source_bytes`.
"""


class Unknown(Exception):
    """What a sum needs is not known before the stage's inputs are there."""


@dataclass(frozen=True)
class Scale:
    """The size of one attempt. Bytes and counts; what is 0 does not occur."""

    outputs: Mapping[str, Amounts] = field(default_factory=dict[str, Amounts])
    """By port."""
    work: Mapping[str, float] = field(default_factory=dict[str, float])
    """`{rate in infra/rates.toml: amount}`: core-seconds are amount / rate, added up."""
    tasks: float = 1.0
    task_output: float = 0.0
    """Bytes of the outputs that one task makes, where their number follows from that."""
    task_disk: float = 0.0
    """Local disk of one task in flight."""
    local: float = 0.0
    """Bytes that stay on the machine's disk until the stage ends, beside the tasks in flight."""
    task_memory: float = 0.0
    memory: float = 0.0
    """Of the machine at another time than when its tasks take theirs."""
    read: float = 0.0
    """Bytes that tasks read from the store, again and again where they do."""
    written: float = 0.0
    """Bytes that tasks write to the store beside the outputs: spills."""
    outside: float = 0.0
    """Bytes fetched from elsewhere."""
    notes: tuple[str, ...] = ()
    """What was assumed of the data."""
    refusals: tuple[Problem, ...] = ()
    """Why the stage cannot do it."""


def amount(manifests: Iterable[ArtifactManifest], name: str) -> float:
    """The sum of one of `Amounts` over artifacts, there or expected. Raises Unknown where one does not say it."""
    total = 0.0
    for manifest in manifests:
        value = manifest.meta.get(name)
        if value is None and name in ("bytes", "files") and manifest.count:
            value = manifest.size if name == "bytes" else manifest.count
        if value is None:
            raise Unknown(f"{name} of its input")
        total += float(value)
    return total
