"""The `preferences` stage: pairs of answers for direct preference optimisation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.core.artifacts import Documents
from stages.core.artifacts import Preferences as PreferenceRows
from stages.core.config import StageConfig
from stages.core.preflight import PreflightContext, Probe, Problem
from stages.core.resources import Resources
from stages.core.shrinking import Grows, Shrinks
from stages.core.stage import Input, Output, Reading, Stage, output
from stages.lib.data.mixture_spec import MixtureSource, mixture_probes, mixture_problems


class PreferencesConfig(StageConfig):
    """Which pairs."""

    origin: Literal["hub", "machine"] = Field(
        default="hub", description="'hub': the data sets below; 'machine': made of the documents"
    )
    sources: tuple[MixtureSource, ...] = Field(default=(), description="hub: the mixture")
    mirror: str | None = Field(
        default=None, description="hub: folder on this machine that holds the data sets as owner/name"
    )
    heldout: Annotated[float, Grows(wiring=0.2, shape=0.2)] = Field(
        default=0.01, gt=0, lt=1, description="share of the questions that is held out"
    )
    seed: int = Field(
        default=11,
        ge=0,
        description="which rows are drawn and held out. Nodes that share it hold the same questions out",
    )
    material: Literal["about", "editing"] = Field(
        default="about", description="machine: questions about the documents, or editing tasks on their sentences"
    )
    rows: Annotated[int, Shrinks(wiring=120, shape=400)] = Field(
        default=2000, gt=0, description="machine: pairs to make, at most"
    )
    labels: int = Field(
        default=6, ge=4, description="machine: sections, types and roles that questions ask for, the commonest"
    )
    max_characters: int = Field(
        default=240, gt=0, description="machine: a longer pair is left out (prompt and its longer answer)"
    )
    style: Literal["bare", "sentence"] = Field(
        default="bare", description="machine: the style of answers that is preferred"
    )
    style_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="machine: share of pairs of two right answers in the two styles; the rest are right against wrong",
    )


class Preferences(Stage[PreferencesConfig], env="data", revision=2, reproducible="bits"):
    """Pairs of answers in one schema; pairs that cannot be learned from are counted by reason."""

    documents: Sequence[Input[Documents]] | None = None
    train: Output[PreferenceRows] = output()
    heldout: Output[PreferenceRows] = output()

    reads: ClassVar[Mapping[str, Reading]] = {"documents": "shards"}

    @classmethod
    def unread(cls, config: PreferencesConfig) -> Collection[str]:
        return ("documents",) if config.origin == "hub" else ()

    def preflight(self, config: PreferencesConfig, context: PreflightContext) -> Iterable[Problem]:
        if config.origin != "hub":
            return
        yield from mixture_problems(config.sources, config.mirror, context)

    def probes(self, configs: Mapping[str, Any]) -> Iterable[Probe]:
        config: PreferencesConfig = configs[self.name]
        return mixture_probes(config.sources, config.mirror, "preference") if config.origin == "hub" else ()

    @classmethod
    def resources(cls, config: PreferencesConfig) -> Resources:
        return Resources(cpus=1, memory_gib=4)
