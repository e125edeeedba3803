"""The `evaluate` stage: lm-evaluation-harness, its own task definitions, on local data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from stages.core.artifacts import ArtifactManifest, EvalReport, EvalSuite, Model
from stages.core.config import Operational, StageConfig
from stages.core.resources import Resources, Work
from stages.core.stage import Input, Output, Stage, output


class Task(BaseModel):
    """One task of lm-evaluation-harness."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(min_length=1, description="its name there")
    num_fewshot: int = Field(default=0, ge=0, description="worked examples before the question")
    limit: int | None = Field(default=None, gt=0, description="documents to score at most, first ones; unset: all")


def _tasks(**shots: int) -> tuple[Task, ...]:
    return tuple(Task(task=name, num_fewshot=count) for name, count in shots.items())


#: Paper 7, Tables 2 and 3: the tasks and their shots.
PAPER_SUITES: Mapping[str, tuple[Task, ...]] = {
    "zero_shot": _tasks(hellaswag=0, winogrande=0, piqa=0, arc_easy=0, arc_challenge=0),
    "few_shot": _tasks(arc_challenge=25, hellaswag=10, mmlu=5, winogrande=5),
}
#: Which of the paper's tables a suite fills, and the column of each task.
TABLES: Mapping[str, str] = {"zero_shot": "table_2", "few_shot": "table_3"}
COLUMNS: Mapping[str, str] = {
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "piqa": "PIQA",
    "arc_easy": "ARC-E",
    "arc_challenge": "ARC-C",
    "mmlu": "MMLU",
}


class EvaluateConfig(StageConfig):
    """Suites of tasks and how the model is run."""

    suites: Mapping[str, tuple[Task, ...]] = Field(
        default=PAPER_SUITES, min_length=1, description="named lists of tasks (Tables 2, 3)"
    )
    max_length: int | None = Field(
        default=None, gt=1, description="context in tokens; longer prompts lose their beginning; unset: the model's"
    )
    bootstrap_iters: int = Field(default=1000, ge=0, description="for standard errors of metrics that have no formula")
    seed: int = Field(default=1234, description="few-shot sampling (the harness's default)")
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="of the weights while scoring")
    batch_size: Operational[int] = Field(default=16, gt=0, description="requests in a forward pass")
    threads: Operational[int] = Field(default=2, gt=0, description="CPU threads")
    device: Operational[Literal["auto", "cpu", "cuda"]] = Field(
        default="auto", description="auto: a GPU if there is one"
    )


class Evaluate(Stage[EvaluateConfig], env="eval", revision=3, reproducible="same hardware"):
    """Score a model on the paper's suites with lm-evaluation-harness's unmodified task definitions."""

    model: Input[Model]
    suite: Input[EvalSuite]
    report: Output[EvalReport] = output()

    @classmethod
    def resources(cls, config: EvaluateConfig) -> Resources:
        return Resources(cpus=config.threads, memory_gib=4)

    @classmethod
    def work(cls, config: EvaluateConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        return Work()  # depends on the lengths of the prompts: an earlier result is the only honest estimate

    @classmethod
    def smaller(cls, config: EvaluateConfig) -> EvaluateConfig | None:
        return config.halved("batch_size")
