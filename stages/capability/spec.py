"""The `capability` stage: the training splits of benchmarks as documents, their test splits as a suite."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, Documents, EvalSuite
from stages.core.config import StageConfig
from stages.core.preflight import PreflightContext, Probe, Problem, data_set
from stages.core.resources import Resources
from stages.core.scale import Scale
from stages.core.shrinking import Shrinks
from stages.core.stage import Input, Output, Reading, Stage, output

Benchmark = Literal["arc", "hellaswag", "mmlu", "piqa", "winogrande"]
BENCHMARKS: tuple[Benchmark, ...] = ("arc", "hellaswag", "mmlu", "piqa", "winogrande")
DATA_SETS: dict[Benchmark, str] = {
    "arc": "allenai/ai2_arc",
    "hellaswag": "Rowan/hellaswag",
    "mmlu": "cais/mmlu",
    "piqa": "baber/piqa",
    "winogrande": "allenai/winogrande",
}
"""The hub names in lm-evaluation-harness 0.4.13's task files."""
CONFIGURATIONS = {
    "allenai/ai2_arc": "ARC-Easy",
    "Rowan/hellaswag": "default",
    "cais/mmlu": "college_computer_science",
    "baber/piqa": "default",
    "allenai/winogrande": "winogrande_xl",
}
"""One configuration of each, to look into."""


class CapabilityConfig(StageConfig):
    """Which benchmarks, and where their data comes from."""

    origin: Literal["hub", "machine"] = Field(
        default="hub",
        description="'hub': the benchmarks themselves; 'machine': questions in their schemas, made from the documents",
    )
    benchmarks: tuple[Benchmark, ...] = Field(
        default=BENCHMARKS, min_length=1, description="benchmarks of Tables 2 and 3 (paper 7)"
    )
    train_on: tuple[Benchmark, ...] | None = Field(
        default=None,
        description=(
            "benchmarks whose training split becomes training data (paper 3.3.3: 'such as MMLU, HellaSwag'); unset: all"
        ),
    )
    mirror: str | None = Field(
        default=None, description="hub: folder on this machine that holds the data sets as owner/name"
    )
    revisions: Mapping[str, str] = Field(default={}, description="hub: commit of a data set, by owner/name")
    train_questions: Annotated[int, Shrinks(wiring=200, shape=400)] = Field(
        default=1200, gt=0, description="machine: training questions for each task"
    )
    test_questions: Annotated[int, Shrinks(wiring=20, shape=20)] = Field(
        default=200, gt=0, description="machine: test questions for each task"
    )
    test_share: float = Field(
        default=0.2, gt=0, lt=1, description="machine: share of the documents that only test questions are made of"
    )
    classes: int = Field(
        default=6, ge=4, description="machine: sections and types that questions ask for, the commonest"
    )
    seed: int = Field(default=11, description="order of the training documents; machine: also which questions are made")

    @model_validator(mode="after")
    def _known(self) -> CapabilityConfig:
        extra = sorted(set(self.train_on or ()) - set(self.benchmarks))
        if extra:
            raise ValueError(f"train_on names {', '.join(extra)}, which benchmarks leaves out")
        return self


class Capability(Stage[CapabilityConfig], env="data", revision=4, reproducible="bits"):
    """Training splits of benchmarks as documents for phase 3, and their test splits as an evaluation suite."""

    documents: Sequence[Input[Documents]]
    train: Output[Documents] = output()
    suite: Output[EvalSuite] = output()

    reads: ClassVar[Mapping[str, Reading]] = {"documents": "shards"}

    @classmethod
    def scale(cls, config: CapabilityConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Scale:
        """The hub's training splits: some 50 M tokens (declared), whatever `documents` hold, which it does not read."""
        if config.origin != "hub":
            return Scale()
        train = {"documents": 150e3, "text_bytes": 200e6, "bytes": 100e6, "files": 1.0}
        return Scale(outputs={"train": train, "suite": {"bytes": 100e6, "files": 20.0}}, outside=200e6)

    @classmethod
    def unread(cls, config: CapabilityConfig) -> Collection[str]:
        return ("documents",) if config.origin == "hub" else ()

    def preflight(self, config: CapabilityConfig, context: PreflightContext) -> Iterable[Problem]:
        if config.origin == "hub":
            for name in (DATA_SETS[benchmark] for benchmark in config.benchmarks):
                yield from data_set(f'revisions."{name}"', name, config.revisions.get(name), config.mirror, context)

    def probes(self, configs: Mapping[str, Any]) -> Iterable[Probe]:
        config: CapabilityConfig = configs[self.name]
        if config.origin == "hub":
            for name in (DATA_SETS[benchmark] for benchmark in config.benchmarks):
                set_ = {
                    "data_set": name,
                    "config": CONFIGURATIONS[name],
                    "split": None,
                    "revision": config.revisions.get(name),
                    "mirror": config.mirror,
                }
                yield Probe("benchmarks", name, "stages.lib.data.probe", set_)

    @classmethod
    def resources(cls, config: CapabilityConfig) -> Resources:
        return Resources(cpus=1, memory_gib=4)
