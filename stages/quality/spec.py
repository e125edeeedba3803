"""The `quality` stage: keep the documents that look most like a reference, by a fastText classifier (DCLM)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stages.core.artifacts import ArtifactManifest, Documents
from stages.core.config import Operational, StageConfig
from stages.core.preflight import PreflightContext, Problem, model_file
from stages.core.resources import Resources
from stages.core.scale import Scale
from stages.core.shrinking import Grows, Shrinks
from stages.core.stage import Input, Output, Reading, Stage, output
from stages.lib.data.amounts import corpus, documents, shards


class QualityConfig(StageConfig):
    """The classifier and what is kept. Defaults are fastText's own and DCLM's (Li et al. 2024)."""

    keep_fraction: Annotated[float, Grows(wiring=0.5, shape=0.5)] = Field(
        default=0.10, gt=0, le=1, description="share of documents kept, best first (paper 3.3.1)"
    )
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="keep by score instead; DCLM's released filter uses 0.018112"
    )
    model: Operational[str | None] = Field(
        default=None,
        description=(
            "a trained fastText model (.bin, labels __label__hq and __label__cc) to score with; unset: train one"
        ),
    )
    model_sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="of that file: part of the key, unlike its path"
    )
    train_documents: Annotated[int, Shrinks(wiring=200, shape=2000)] = Field(
        default=200_000, gt=1, description="of each label at most; DCLM trained on 200k in all"
    )
    word_ngrams: int = Field(default=2, ge=1, description="DCLM: bigrams")
    dim: Annotated[int, Shrinks(wiring=16)] = Field(default=100, ge=1, description="fastText's default")
    epochs: Annotated[int, Shrinks(wiring=5, shape=5)] = Field(default=5, ge=1, description="fastText's default")
    learning_rate: float = Field(default=0.1, gt=0, description="fastText's default")
    buckets: Annotated[int, Shrinks(wiring=20_000)] = Field(
        default=2_000_000, ge=1, description="hash buckets of n-grams, fastText's default"
    )
    holdout: float = Field(
        default=0.1, gt=0, lt=1, description="share of the training documents that tests the classifier"
    )
    seed: int = Field(default=1, description="which documents train")
    workers: Annotated[Operational[int | Literal["ray", "slurm", "kubernetes"]], Shrinks(wiring=2, shape=2)] = Field(
        default=1,
        description=(
            "processes, 'ray': the cluster that RAY_ADDRESS names, or 'slurm', 'kubernetes': arrays of jobs by that"
            " launcher; never changes the result"
        ),
    )


class Quality(Stage[QualityConfig], env="data", revision=4, reproducible="same hardware"):
    """Score documents with a fastText classifier and keep the best tenth."""

    reads: ClassVar[Mapping[str, Reading]] = {"documents": "shards", "positives": "shards"}

    documents: Input[Documents]
    positives: Input[Documents]
    kept: Output[Documents] = output()

    @classmethod
    def scale(cls, config: QualityConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Scale:
        """The text is read to be scored, and again to write what stays."""
        (count, text, stored), kept = corpus(inputs["documents"]), config.keep_fraction
        tasks, held = shards(text)
        return Scale(
            outputs={"kept": documents(count * kept, text * kept)},
            work={"quality.score": text},
            tasks=2 * tasks,
            task_disk=2 * held,
            task_memory=4 << 30,
            read=2 * stored,
            written=8 * count,
        )

    @classmethod
    def unread(cls, config: QualityConfig) -> Collection[str]:
        return ("positives",) if config.model else ()

    def preflight(self, config: QualityConfig, context: PreflightContext) -> Iterable[Problem]:
        if config.model:
            yield from model_file("model", config.model, config.model_sha256, "a fastText classifier", context)

    @classmethod
    def resources(cls, config: QualityConfig) -> Resources:
        return Resources(cpus=config.workers if isinstance(config.workers, int) else 1, memory_gib=4)
