"""The `sft` stage: a model learns to write the assistant's turns of conversations (paper 4.1, 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, Conversations, Model, Problems
from stages.core.contracts import Facets, Input, Operational, Output, Resources, Stage, Work, output
from stages.engines import rules
from stages.finetuning.settings import SupervisedConfig, check_parent, child_facets, tuning_resources, tuning_work


class SftConfig(SupervisedConfig):
    """Defaults: Tülu 3's SFT (RECIPE 4)."""

    chat_template: Literal["tulu"] = Field(default="tulu", description="how turns are written; a tuned parent must have the same")
    label_smoothing: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the target spread over the vocabulary. Paper 3.1: used in fine-tuning, no value; 0.1 is Vaswani et al. 2017's. "
        "open-instruct's finetune.py has none: 0 is its loss",
    )
    answer_tokens: int = Field(default=256, gt=0, description="tokens of a sampled answer at most, for samples and for problems")
    instruction: str = Field(
        default=r"Let's think step by step and output the final answer within \boxed{}.",
        description="with `problems`: what follows a problem in its prompt, as in the training data (DeepScaleR's sentence)",
    )
    problem_rows: int = Field(default=200, gt=0, description="with `problems`: held-out problems to answer, greedily; the first ones")
    verify_workers: Operational[int] = Field(default=1, gt=0, description="processes that check answers")

    @model_validator(mode="after")
    def _room(self) -> SftConfig:
        if self.answer_tokens >= self.max_length:
            raise ValueError(f"answer_tokens = {self.answer_tokens} leaves no room for a prompt within max_length = {self.max_length}")
        if self.engine == "open-instruct":
            rules.require(self, {"label_smoothing": (0.0, "has no label smoothing in SFT")})
        return self


class Sft(Stage[SftConfig], env="post", revision=1, checkpoints=True):
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
    def resources(cls, config: SftConfig) -> Resources:
        return tuning_resources(config)

    @classmethod
    def work(cls, config: SftConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        return tuning_work(inputs, "conversations", config.max_length / 2, config.epochs)
