"""The `conversations` stage: what supervised fine-tuning learns from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.core.artifacts import Conversations as ConversationRows
from stages.core.artifacts import Documents
from stages.core.artifacts import Problems as ProblemRows
from stages.core.config import StageConfig
from stages.core.preflight import PreflightContext, Probe, Problem
from stages.core.resources import Resources
from stages.core.shrinking import Grows, Shrinks
from stages.core.stage import Input, Output, Reading, Stage, output
from stages.lib.data.mixture_spec import MixtureSource, mixture_probes, mixture_problems


class ConversationsConfig(StageConfig):
    """Which conversations."""

    origin: Literal["hub", "machine"] = Field(
        default="hub", description="'hub': the data sets below; 'machine': made of the documents or the problems"
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
    material: Literal["about", "editing", "traces"] = Field(
        default="about",
        description=(
            "machine: questions about the documents, editing tasks on their sentences, or solutions of the problems"
        ),
    )
    rows: Annotated[int, Shrinks(wiring=120, shape=400)] = Field(
        default=2000, gt=0, description="machine: conversations to make, at most"
    )
    labels: int = Field(
        default=6, ge=4, description="machine: sections, types and roles that questions ask for, the commonest"
    )
    max_characters: int = Field(default=240, gt=0, description="machine: a longer conversation is left out")
    two_turns: float = Field(
        default=0.1, ge=0, lt=1, description="machine: share of conversations with a second question"
    )
    prose: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description=(
            "machine, traces: share of solutions that end in a sentence, without a box, as OpenThoughts' that are not"
            " of mathematics do"
        ),
    )
    instruction: str = Field(
        default=r"Let's think step by step and output the final answer within \boxed{}.",
        description="machine, traces: what is appended to a problem (DeepScaleR's sentence)",
    )


class Conversations(Stage[ConversationsConfig], env="data", revision=3, reproducible="bits"):
    """Instruction data in one schema; rows that cannot be learned from are counted by reason."""

    documents: Sequence[Input[Documents]] | None = None
    problems: Input[ProblemRows] | None = None
    reserved: Input[ProblemRows] | None = None
    train: Output[ConversationRows] = output()
    heldout: Output[ConversationRows] = output()

    reads: ClassVar[Mapping[str, Reading]] = {"documents": "shards"}

    @classmethod
    def unread(cls, config: ConversationsConfig) -> Collection[str]:
        if config.origin == "hub":
            return ("documents", "problems")
        return ("documents",) if config.material == "traces" else ("problems",)

    def preflight(self, config: ConversationsConfig, context: PreflightContext) -> Iterable[Problem]:
        if config.origin != "hub":
            return
        yield from mixture_problems(config.sources, config.mirror, context)

    def probes(self, configs: Mapping[str, Any]) -> Iterable[Probe]:
        config: ConversationsConfig = configs[self.name]
        return mixture_probes(config.sources, config.mirror, "conversation") if config.origin == "hub" else ()

    @classmethod
    def resources(cls, config: ConversationsConfig) -> Resources:
        return Resources(cpus=1, memory_gib=4)
