"""The `contamination` stage: which evaluation items the training data holds, by training node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.artifacts import (
    ArtifactManifest,
    Conversations,
    Documents,
    EvalSuite,
    ImageConversations,
    ImageSuite,
    Overlap,
    Preferences,
    Problems,
)
from stages.core.config import Operational, StageConfig
from stages.core.resources import Resources
from stages.core.scale import Scale, amount
from stages.core.shrinking import Shrinks
from stages.core.stage import Input, Output, Reading, Stage, output
from stages.lib.data.amounts import shards, text_of

RUNS: Mapping[str, int] = {"gpt3": 13, "llama2": 11}
"""Words that a match has at least: GPT-3's 13-grams; Llama 2's "longer than 10 tokens"."""


class ContaminationConfig(StageConfig):
    """The rule, and what it is applied to."""

    rule: Literal["gpt3", "llama2"] = Field(
        default="gpt3",
        description=(
            "'gpt3': an item that shares a run of words with a training document is dirty (GPT-3, appendix C);"
            " 'llama2': the share of its words that lie in a matching span (Llama 2, appendix A.6)"
        ),
    )
    run: int | None = Field(default=None, gt=1, description="words of a match at least; unset: 13 (gpt3), 11 (llama2)")
    min_words: int = Field(
        default=8, gt=0, description="gpt3: an item shorter than a run counts as a whole, one under this is skipped"
    )
    common: int | None = Field(
        default=10, gt=0, description="gpt3: a run that more training documents hold is ignored; unset: none is"
    )
    skips: int = Field(default=4, ge=0, description="llama2: words that may differ inside a span, not in its first ten")
    left_out_splits: tuple[str, ...] = Field(
        default=("train", "auxiliary_train", "dev"), description="splits of a suite that nothing is scored on"
    )
    workers: Annotated[Operational[int | Literal["ray", "slurm", "kubernetes"]], Shrinks(wiring=2, shape=2)] = Field(
        default=1,
        description=(
            "processes, 'ray': the cluster that RAY_ADDRESS names, or 'slurm', 'kubernetes': arrays of jobs by that"
            " launcher; never changes the result"
        ),
    )

    @property
    def length(self) -> int:
        """Words of a match at least."""
        return RUNS[self.rule] if self.run is None else self.run

    @model_validator(mode="after")
    def _possible(self) -> ContaminationConfig:
        if isinstance(self.workers, int) and self.workers < 1:
            raise ValueError("workers must be 1 or more, 'ray', 'slurm' or 'kubernetes'")
        if self.rule == "gpt3" and self.min_words > self.length:
            raise ValueError(f"min_words = {self.min_words} is more than a run has ({self.length})")
        return self


TRAINING = ("documents", "conversations", "preferences", "problems", "images")
"""Ports of what models learn from."""


class Contamination(Stage[ContaminationConfig], env="data", revision=1, reproducible="bits"):
    """N-gram overlap of every evaluation item with every training document, by training node."""

    suites: Sequence[Input[EvalSuite]]
    image_suites: Sequence[Input[ImageSuite]] | None = None
    documents: Sequence[Input[Documents]]
    conversations: Sequence[Input[Conversations]] | None = None
    preferences: Sequence[Input[Preferences]] | None = None
    problems: Sequence[Input[Problems]] | None = None
    images: Sequence[Input[ImageConversations]] | None = None
    overlap: Output[Overlap] = output()

    reads: ClassVar[Mapping[str, Reading]] = dict.fromkeys(TRAINING, "shards")

    @classmethod
    def resources(cls, config: ContaminationConfig) -> Resources:
        cpus = config.workers if isinstance(config.workers, int) else 1
        return Resources(cpus=cpus, memory_gib=2 + cpus)

    @classmethod
    def scale(cls, config: ContaminationConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Scale:
        """What is read: the training data, once. A data set of images counts by its conversations."""
        training = ("documents", "conversations", "preferences", "problems")
        read = [one for port in training for one in inputs.get(port, ())]
        text = sum(text_of([one]) for one in read)
        tasks, held = shards(text)
        return Scale(
            work={f"contamination.{config.rule}": text},
            tasks=tasks,
            task_disk=held,
            task_memory=1 << 30,
            read=amount(read, "bytes"),
        )
