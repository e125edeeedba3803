"""The `dpo` stage: a model learns to prefer the better of two answers (paper 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, Model, Preferences
from stages.core.renamed import Renamed
from stages.core.resources import Measuring, Processes, Resources, Work
from stages.core.shrinking import Shrinks
from stages.core.stage import Facets, Input, Output, Stage, output
from stages.lib.engines import validation
from stages.lib.finetuning.tuning_config import (
    SupervisedConfig,
    check_parent,
    child_facets,
    heldout_count,
    measuring,
    smaller_tuning,
    tuning_processes,
    tuning_resources,
    tuning_work,
)


class DpoConfig(SupervisedConfig):
    """Defaults: Tülu 3's DPO."""

    epochs: Annotated[int, Shrinks(wiring=1, shape=1)] = Field(
        default=1, gt=0, description="passes over the pairs (Tülu 3: 1)"
    )
    learning_rate: float = Field(default=5e-7, gt=0, description="peak (Tülu 3: 5e-7)")
    max_length: Annotated[int, Shrinks(wiring=512)] = Field(
        default=2048,
        gt=8,
        description="tokens of prompt and answer (Tülu 3: 2048); longer ones lose their end, and are counted",
    )
    warmup_ratio: float = Field(
        default=0.1, ge=0, lt=1, description="share of the steps with a rising rate (Tülu 3: 0.1); then linear to 0"
    )
    loss_type: Annotated[Literal["dpo_norm"], Renamed("loss", until="0.3")] = Field(
        default="dpo_norm", description="sigmoid of log-probabilities averaged over an answer's tokens (Tülu 3)"
    )
    beta: float = Field(default=5.0, gt=0, description="how far the model may move from its parent (Tülu 3: 5)")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="how often a pair is taken to be the wrong way round (Tülu 3: 0)"
    )
    turns: Literal["all", "last"] = Field(
        default="all",
        description=(
            "of which assistant's turns the log-probability counts: all, earlier ones in the prompt too"
            " (open-instruct's preference_tulu_tokenize_and_truncate_v1, its default), or those after the prompt (its"
            " v1_2, and TRL's own way)"
        ),
    )
    max_new_tokens: Annotated[int, Renamed("answer_tokens", until="0.3"), Shrinks(wiring=16, shape=64)] = Field(
        default=256, gt=0, description="tokens of a sampled answer at most"
    )

    @model_validator(mode="after")
    def _room(self) -> DpoConfig:
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens = {self.max_new_tokens} leaves no room for a prompt within max_length ="
                f" {self.max_length}"
            )
        if self.engine == "trl":
            validation.require(
                self, {"label_smoothing": (0.0, "smooths no labels in its length-normalised loss (sigmoid_norm)")}
            )
        else:
            validation.require(
                self, {"turns": ("all", "has no other transform than preference_tulu_tokenize_and_truncate_v1 for it")}
            )
        return self


class Dpo(Stage[DpoConfig], env="post", revision=3, checkpoints=True, reproducible="same hardware"):
    """Tune a model on pairs of answers with length-normalised DPO."""

    parent: Input[Model]
    preferences: Input[Preferences]
    heldout: Input[Preferences]
    model: Output[Model] = output()

    @classmethod
    def facets(cls, config: DpoConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        return {"model": child_facets(inputs["parent"][0], None)}

    @classmethod
    def check_facets(cls, node: str, config: DpoConfig, inputs: Mapping[str, Sequence[tuple[str, Facets]]]) -> None:
        super().check_facets(node, config, inputs)
        check_parent(node, inputs, template=None, lengths={"max_length": config.max_length})

    @classmethod
    def processes(cls, config: DpoConfig) -> Processes:
        return tuning_processes(config)

    @classmethod
    def resources(cls, config: DpoConfig) -> Resources:
        return tuning_resources(config)

    @classmethod
    def check_resources(cls, node: str, config: DpoConfig, resources: Resources) -> None:
        if config.engine != "trl":
            validation.require_shared_batches(node, config, resources.ranks)

    @classmethod
    def work(cls, config: DpoConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        # two answers a row, forward and backward; the reference's forward pass is a third of that, once
        return tuning_work(
            inputs, "preferences", config.max_length, config.epochs + 1 / 3, cls.measuring(config, inputs)
        )

    @classmethod
    def measuring(cls, config: DpoConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Measuring:
        rows = heldout_count(config.eval_rows, inputs, "heldout")
        return measuring(
            config,
            inputs,
            read=(rows * config.max_length, config.max_length),
            written=[(config.samples, config.max_new_tokens)],
            prompt=config.max_length - config.max_new_tokens,
        )

    @classmethod
    def smaller(cls, config: DpoConfig) -> DpoConfig | None:
        return smaller_tuning(config)
