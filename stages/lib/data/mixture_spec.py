"""A mixture of data sets: which share of each goes in, drawn by seed, and what was taken of each.

sources = [{ data_set = "allenai/tulu-3-sft-mixture", fraction = 1.0 }, { data_set = "BAAI/Infinity-Instruct", config =
"Gen", cap = 100_000 }]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from stages.core.preflight import PreflightContext, Probe, Problem, data_set
from stages.core.shrinking import Shrinks


class MixtureSource(BaseModel):
    """One data set of a mixture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_set: str = Field(pattern=r"^[^/\s]+/[^/\s]+$", description="the hub's name of it, owner/name")
    config: str = Field(default="default", min_length=1, description="its configuration")
    split: str = Field(default="train", min_length=1, description="its split")
    revision: str | None = Field(
        default=None, description="commit on the hub; unset: what the main branch points at, recorded"
    )
    fraction: float = Field(default=1.0, gt=0, le=1, description="share of its rows that goes in")
    cap: Annotated[int | None, Shrinks(wiring=64, shape=400)] = Field(
        default=None, gt=0, description="rows that go in, at most"
    )
    first: Annotated[int | None, Shrinks(wiring=64, shape=400)] = Field(
        default=None,
        gt=0,
        exclude_if=lambda first: first is None,  # keys from before it was there stay
        description="rows of its beginning that all else is of, and no more is fetched; unset: all",
    )
    license: str | None = Field(default=None, description="SPDX expression, where the card names none or another")
    drop_system: bool = Field(default=False, description="leave its system turns out")


def mixture_problems(
    sources: Sequence[MixtureSource], mirror: str | None, context: PreflightContext
) -> Iterator[Problem]:
    """What is known to be missing of a mixture before a run: it is empty, or a data set is not pinned, not mirrored,
    not ours to read.
    """
    if not sources:
        yield Problem("sources", "[]", "empty", "list at least one data set, or set origin = 'machine'")
    for number, source in enumerate(sources):
        yield from data_set(f"sources.{number}.revision", source.data_set, source.revision, mirror, context)


def mixture_probes(sources: Sequence[MixtureSource], mirror: str | None, row_type: str) -> Iterator[Probe]:
    """What to open of a mixture. row_type: how a row must read (stages/lib/data/probe.py)."""
    for number, source in enumerate(sources):
        request = {name: getattr(source, name) for name in ("data_set", "config", "split", "revision")}
        yield Probe(
            f"sources.{number}",
            source.data_set,
            "stages.lib.data.probe",
            {**request, "mirror": mirror, "row_type": row_type},
        )
