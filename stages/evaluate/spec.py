"""The `evaluate` stage: suites of lm-evaluation-harness, with its own task definitions, on local data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, Completions, EvalReport, EvalSuite, Model
from stages.core.config import Operational, StageConfig
from stages.core.preflight import PreflightContext, Problem
from stages.core.resources import Resources, Work
from stages.core.shrinking import Rehearsal, Shrinks
from stages.core.stage import Input, Output, Stage, output
from stages.lib.evaluation.suite_file import Suite, TaskEntry, load

HARNESS = "lm-evaluation-harness"


class EvaluateConfig(StageConfig):
    """Suites of tasks and how the model is run."""

    suites: tuple[Suite, ...] = Field(
        default=(load("table_2"), load("table_3")),
        min_length=1,
        description=(
            "shipped suites by name ('table_2'), files of your own ('mine.toml'), or changed ones ({ base = 'table_3',"
            " limit = 60, only = ['mmlu'], tasks = { mmlu = { num_fewshot = 2 } } })"
        ),
    )
    max_length: int | None = Field(
        default=None, gt=1, description="context in tokens; longer prompts lose their beginning; unset: the model's"
    )
    bootstrap_iters: Annotated[int, Shrinks(wiring=10, shape=10)] = Field(
        default=1000, ge=0, description="for standard errors of metrics that have no formula"
    )
    seed: int = Field(default=1234, description="few-shot sampling (the harness's default), and drawn answers")
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="of the weights while scoring")
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers", description="who runs the model; part of the key: draws and last digits differ"
    )
    batch_size: Operational[int] = Field(default=16, gt=0, description="requests in a forward pass")
    threads: Operational[int] = Field(default=2, gt=0, description="CPU threads")
    device: Operational[Literal["auto", "cpu", "cuda"]] = Field(
        default="auto", description="auto: a GPU if there is one"
    )

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """At level `shape`, tasks whose answers are said to be written fill a batch: one that is not full takes nearly
        as long.
        """
        if rehearsal.level != "shape":
            return values
        suites = [
            small.model_copy(
                update={
                    "tasks": tuple(
                        less.model_copy(update={"limit": self._a_batch(task, less)})
                        for task, less in zip(suite.tasks, small.tasks, strict=True)
                    )
                }
            )
            for suite, small in zip(self.suites, values["suites"], strict=True)
        ]
        return values | {"suites": tuple(suites)}

    def _a_batch(self, task: TaskEntry, less: TaskEntry) -> int | None:
        if task.max_new_tokens is None or less.limit is None:
            return less.limit
        full = max(less.limit, ceil(self.batch_size / less.repeats))
        return min(full, task.limit or full)

    @model_validator(mode="after")
    def _suites_of_this_harness(self) -> EvaluateConfig:
        for suite in self.suites:
            if suite.harness != HARNESS:
                raise ValueError(
                    f"suite '{suite.name}' is of {suite.harness}, this stage runs {HARNESS}: give it to that harness's"
                    " stage, or take another suite"
                )
            if again := [name for name, count in Counter(t.task for t in suite.tasks).items() if count > 1]:
                raise ValueError(f"suite '{suite.name}' names task {again[0]} twice: make it two suites")
        if again := [name for name, count in Counter(suite.name for suite in self.suites).items() if count > 1]:
            raise ValueError(f"two suites are called '{again[0]}': give one of them a name")
        return self


class Evaluate(Stage[EvaluateConfig], env="eval", revision=5, reproducible="same hardware"):
    """Score a model on suites of lm-evaluation-harness's tasks; programs are written for another stage to run."""

    untimed: ClassVar[str] = "what its suites ask is known once they are there"

    model: Input[Model]
    suites: Sequence[Input[EvalSuite]]
    report: Output[EvalReport] = output()
    completions: Output[Completions] = output()

    def preflight(self, config: EvaluateConfig, context: PreflightContext) -> Iterable[Problem]:
        if config.engine == "vllm" and config.device == "cpu":
            yield Problem("device", "cpu", "engine = 'vllm' needs a GPU", "set 'auto', or engine = 'transformers'")

    @classmethod
    def interpreter(cls, config: EvaluateConfig) -> str | None:
        return "vllm" if config.engine == "vllm" else None

    @classmethod
    def resources(cls, config: EvaluateConfig) -> Resources:
        return Resources(cpus=config.threads, memory_gib=4)

    @classmethod
    def work(cls, config: EvaluateConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        return Work()  # depends on the lengths of the prompts: an earlier result is the only honest estimate

    @classmethod
    def smaller(cls, config: EvaluateConfig) -> EvaluateConfig | None:
        return config.halved("batch_size")
