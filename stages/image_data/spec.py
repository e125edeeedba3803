"""The `image_data` stage: visual instruction data in LLaVA's schema, and the seven visual benchmarks as a suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.core.artifacts import ArtifactManifest, ImageConversations, ImageSuite
from stages.core.config import Operational, StageConfig
from stages.core.preflight import PreflightContext, Problem, present
from stages.core.renamed import Renamed
from stages.core.resources import Resources
from stages.core.scale import Scale
from stages.core.shrinking import Grows, Shrinks
from stages.core.stage import Output, Stage, output

Kind = Literal["captions", "instructions"]
BenchmarkName = Literal["gqa", "vizwiz", "refcoco+", "ocid-ref", "vsr", "pope", "tally-qa"]


class ConversationFile(BaseModel):
    """One file of conversations, and where its images are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="for counts and cards")
    kind: Kind = Field(description="captions (the 558K set), or instructions (the 665K mixture)")
    path: str = Field(min_length=1, description="LLaVA's JSON (a list) or JSON lines, on this machine")
    images: tuple[str, ...] = Field(
        default=(), description="folders or zip files that the rows' image names are looked up in, in order"
    )
    every: Annotated[int, Grows(wiring=5000, shape=1000)] = Field(
        default=1, ge=1, description="each n-th row, from the first on, for a smaller run; 1: all"
    )


class BenchmarkFiles(BaseModel):
    """One benchmark as its authors publish it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(
        min_length=1, description="holds the annotation files (stages/lib/vision/benchmarks.py names them)"
    )
    images: tuple[str, ...] = Field(
        min_length=1, description="folders or zip files that its image names are looked up in, in order"
    )


class ImageDataConfig(StageConfig):
    """Files that exist somewhere, or scenes that this stage renders."""

    origin: Literal["listing", "machine"] = Field(
        default="listing",
        description="'listing': the files named below; 'machine': rendered scenes with a known content",
    )
    sources: tuple[ConversationFile, ...] = Field(
        default=(), description="listing: files of conversations (paper 6: LLaVA v1.5's two sets)"
    )
    train_on: tuple[Kind, ...] = Field(
        default=("instructions",),
        min_length=1,
        description=(
            "kinds that are trained on; the paper lists both sets, upstream's single stage (no-align) never reads the"
            " captions"
        ),
    )
    benchmarks: Mapping[BenchmarkName, BenchmarkFiles] = Field(
        default={}, description="listing: the suite of Table 8 (paper 7.5)"
    )
    max_unusable: float = Field(
        default=0.01, ge=0, le=1, description="listing: largest share of rows that may be left out, counted by reason"
    )
    scenes: Annotated[int, Shrinks(wiring=24, shape=200)] = Field(
        default=3000, gt=0, description="machine: scenes to train on"
    )
    rows_per_scene: int = Field(
        default=3, ge=1, description="machine: rows with the scene's image; the first is a dense caption"
    )
    text_share: float = Field(
        default=0.05, ge=0, lt=1, description="machine: rows without an image, as a share of those with one"
    )
    test_scenes: Annotated[int, Shrinks(wiring=16, shape=64)] = Field(
        default=400, gt=0, description="machine: scenes of the suite; no layout of theirs is trained on"
    )
    test_questions: Annotated[int, Shrinks(wiring=8, shape=64)] = Field(
        default=200, gt=0, description="machine: questions of each benchmark"
    )
    grid: int = Field(default=2, ge=1, le=4, description="machine: cells on each side of a scene")
    size: int = Field(default=96, ge=16, description="machine: pixels on each side of a scene")
    seed: int = Field(default=7, description="machine: which scenes and questions are made")
    workers: Annotated[
        Operational[int | Literal["ray", "slurm", "kubernetes"]],
        Renamed("threads", until="0.3"),
        Shrinks(wiring=2, shape=2),
    ] = Field(
        default=1,
        description=(
            "processes, 'ray': the cluster that RAY_ADDRESS names, or 'slurm', 'kubernetes': arrays of jobs by that"
            " launcher (listing: its files must be there too); never changes the result"
        ),
    )

    @model_validator(mode="after")
    def _room(self) -> ImageDataConfig:
        if isinstance(self.workers, int) and self.workers < 1:
            raise ValueError("workers must be 1 or more, 'ray', 'slurm' or 'kubernetes'")
        names = [file.name for file in self.sources]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two sources are called {twice!r}: their images could not be told apart")
        if self.size < 12 * self.grid:
            raise ValueError(f"size = {self.size} leaves less than 12 pixels for each of {self.grid} cells")
        return self


class ImageData(Stage[ImageDataConfig], env="data", revision=4, reproducible="bits"):
    """Image conversations to train on, and the seven visual benchmarks; unusable images are counted by reason."""

    train: Output[ImageConversations] = output()
    suite: Output[ImageSuite] = output()

    def preflight(self, config: ImageDataConfig, context: PreflightContext) -> Iterable[Problem]:
        if config.origin != "listing":
            return
        if not config.sources:
            yield Problem("sources", "[]", "empty", "list at least one file, or set origin = 'machine'")
        for number, source in enumerate(config.sources):
            if source.kind in config.train_on:
                yield from present(f"sources.{number}.path", source.path, f"{source.name}'s JSON", context)
                for image in source.images:
                    yield from present(f"sources.{number}.images", image, f"{source.name}'s images", context)
        for name, files in config.benchmarks.items():
            yield from present(f"benchmarks.{name}.folder", files.folder, f"{name}'s annotations", context)
            for image in files.images:
                yield from present(f"benchmarks.{name}.images", image, f"{name}'s images", context)

    @classmethod
    def resources(cls, config: ImageDataConfig) -> Resources:
        cpus = config.workers if isinstance(config.workers, int) else 1
        return Resources(cpus=cpus, memory_gib=2 * cpus if config.origin == "machine" else max(16, 2 * cpus))

    @classmethod
    def scale(cls, config: ImageDataConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Scale:
        """Every image is read once; a task has a gigabyte of them, and the one that lists a source its text."""
        return Scale(task_output=float(1 << 30), task_disk=float(2 << 30), task_memory=float(1 << 30))
