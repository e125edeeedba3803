"""The `sft` stage: a model learns to write the assistant's turns of conversations (paper 4.1, 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, Conversations, Model, Problems
from stages.core.config import Operational
from stages.core.renamed import Renamed
from stages.core.resources import Measuring, Processes, Resources, Work
from stages.core.shrinking import Rehearsal, Shrinks
from stages.core.stage import Facets, Input, Output, Stage, output
from stages.lib.engines import validation
from stages.lib.finetuning.tuning_config import (
    SupervisedConfig,
    batch_of_measurement,
    check_parent,
    child_facets,
    heldout_count,
    measuring,
    smaller_tuning,
    tuning_processes,
    tuning_resources,
    tuning_work,
)


class SftConfig(SupervisedConfig):
    """Defaults: Tülu 3's SFT."""

    chat_template: Literal["tulu"] = Field(
        default="tulu", description="how turns are written; a tuned parent must have the same"
    )
    label_smoothing: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description=(
            "share of the target spread over the vocabulary. Paper 3.1: used in fine-tuning, no value; 0.1 is Vaswani"
            " et al. 2017's. open-instruct's finetune.py has none: 0 is its loss"
        ),
    )
    max_new_tokens: Annotated[int, Renamed("answer_tokens", until="0.3"), Shrinks(wiring=16, shape=64)] = Field(
        default=256, gt=0, description="tokens of a sampled answer at most, for samples and for problems"
    )
    instruction: str = Field(
        default=r"Let's think step by step and output the final answer within \boxed{}.",
        description=(
            "with `problems`: what follows a problem in its prompt, as in the training data (DeepScaleR's sentence)"
        ),
    )
    eval_problems: Annotated[int, Renamed("problem_rows", until="0.3"), Shrinks(wiring=4, shape=4)] = Field(
        default=200, gt=0, description="with `problems`: held-out problems to answer, greedily; the first ones"
    )
    verify_workers: Annotated[Operational[int], Shrinks(wiring=2, shape=2)] = Field(
        default=1, gt=0, description="processes that check answers"
    )

    @model_validator(mode="after")
    def _room(self) -> SftConfig:
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens = {self.max_new_tokens} leaves no room for a prompt within max_length ="
                f" {self.max_length}"
            )
        if self.engine == "open-instruct":
            validation.require(self, {"label_smoothing": (0.0, "has no label smoothing in SFT")})
        return self

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """As of each supervised training, and problems that are answered side by side."""
        values = super().rehearsed(values, rehearsal)
        if rehearsal.level == "shape":
            length = self.max_length - self.max_new_tokens
            values["eval_problems"] = batch_of_measurement(self, self.eval_problems, values["eval_problems"], length)
        return values


class Sft(Stage[SftConfig], env="post", revision=3, checkpoints=True, reproducible="same hardware"):
    """Fine-tune a model on conversations: loss on the assistant's turns only."""

    parent: Input[Model]
    conversations: Input[Conversations]
    heldout: Input[Conversations]
    problems: Input[Problems] | None = None
    model: Output[Model] = output()

    @classmethod
    def facets(cls, config: SftConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        return {"model": child_facets(inputs["parent"][0], config.chat_template)}

    @classmethod
    def check_facets(cls, node: str, config: SftConfig, inputs: Mapping[str, Sequence[tuple[str, Facets]]]) -> None:
        super().check_facets(node, config, inputs)
        check_parent(node, inputs, template=config.chat_template, lengths={"max_length": config.max_length})

    @classmethod
    def processes(cls, config: SftConfig) -> Processes:
        return tuning_processes(config)

    @classmethod
    def resources(cls, config: SftConfig) -> Resources:
        return tuning_resources(config)

    @classmethod
    def check_resources(cls, node: str, config: SftConfig, resources: Resources) -> None:
        if config.engine != "trl":
            validation.require_shared_batches(node, config, resources.ranks)

    @classmethod
    def work(cls, config: SftConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        return tuning_work(inputs, "conversations", config.max_length / 2, config.epochs, cls.measuring(config, inputs))

    @classmethod
    def measuring(cls, config: SftConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Measuring:
        asked = heldout_count(config.eval_problems, inputs, "problems") if inputs.get("problems") else 0
        rows = heldout_count(config.eval_rows, inputs, "heldout")
        return measuring(
            config,
            inputs,
            read=(rows * config.max_length / 2, config.max_length),
            written=[(config.samples, config.max_new_tokens), (asked, config.max_new_tokens)],
            prompt=config.max_length - config.max_new_tokens,
        )

    @classmethod
    def smaller(cls, config: SftConfig) -> SftConfig | None:
        return smaller_tuning(config)
