"""The `evaluate_external` stage: a suite of OLMES, Qwen2.5-Math's evaluation or OpenCompass, run in its own Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, EvalReport, EvalSuite, Model
from stages.core.config import Operational, StageConfig
from stages.core.interpreters import variable
from stages.core.preflight import PreflightContext, Problem
from stages.core.resources import Resources, Work
from stages.core.stage import Input, Output, Stage, output
from stages.lib.evaluation.suite_file import Suite, load

HARNESSES = ("olmes", "qwen25-math", "opencompass")


class EvaluateExternalConfig(StageConfig):
    """A suite, and how its harness runs the model."""

    suite: Suite = Field(
        default=load("table_7"),
        description="a shipped suite by name ('table_6', 'table_7', 'table_2_opencompass'), a file of your own, or a"
        " changed one ({ base = 'table_7', limit = 20 })",
    )
    vllm: bool = Field(
        default=False, description="vLLM runs the model, on GPUs; part of the key: draws and last digits differ"
    )
    max_length: int = Field(default=4096, gt=1, description="context in tokens (OLMES and OpenCompass)")
    seed: int = Field(default=0, description="of draws (Qwen2.5-Math's evaluation)")
    batch_size: Operational[int] = Field(default=16, gt=0, description="requests at a time (OLMES and OpenCompass)")
    gpus: Operational[int] = Field(default=0, ge=0, description="GPUs that the harness may use; 0: it runs on the CPU")

    @model_validator(mode="after")
    def _goes_together(self) -> EvaluateExternalConfig:
        if self.suite.harness not in HARNESSES:
            raise ValueError(
                f"suite '{self.suite.name}' is of {self.suite.harness}; this stage runs {', '.join(HARNESSES)}"
            )
        if self.vllm and not self.gpus:
            raise ValueError("vllm = true needs a GPU: set gpus, or vllm = false")
        return self


class EvaluateExternal(Stage[EvaluateExternalConfig], env="eval", revision=2, reproducible="no"):
    """Score a model with a harness that is installed apart, and read its own result files into the common report."""

    untimed: ClassVar[str] = "what its suites ask is known once they are there"

    model: Input[Model]
    suites: Sequence[Input[EvalSuite]]
    report: Output[EvalReport] = output()

    def preflight(self, config: EvaluateExternalConfig, context: PreflightContext) -> Iterable[Problem]:
        harness = config.suite.harness
        name = variable(harness)
        path = os.environ.get(name, "")
        if context.here and not os.access(path, os.X_OK):
            yield Problem(
                name,
                path or None,
                f"harness '{harness}' is not installed on this machine",
                f"install it as containers/{harness}/README.md says, and name its Python there",
            )

    @classmethod
    def resources(cls, config: EvaluateExternalConfig) -> Resources:
        return Resources(cpus=2, memory_gib=8, gpus=config.gpus)

    @classmethod
    def work(cls, config: EvaluateExternalConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        return Work()  # depends on how long the answers are: an earlier result is the only honest estimate

    @classmethod
    def smaller(cls, config: EvaluateExternalConfig) -> EvaluateExternalConfig | None:
        return config.halved("batch_size")
