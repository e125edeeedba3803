"""The `probe_shards` stage: carries the tokenizer's facets on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from stages.core.artifacts import Documents, Tokenizer, TokenShards
from stages.core.config import Operational, StageConfig
from stages.core.stage import Facets, Input, Output, Stage, output


class ShardsConfig(StageConfig):
    """The length of a window, and who packs."""

    sequence_length: int = Field(default=16, gt=1, description="tokens in a window")
    workers: Operational[int | Literal["slurm"]] = Field(
        default=1, description="processes of a pool, or who has it; 1: none"
    )
    task_seconds: Operational[float] = Field(default=0.0, ge=0, description="processor time of a task of the pool")


class Shards(Stage[ShardsConfig], env="data", revision=1):
    """Pack documents into windows."""

    documents: Sequence[Input[Documents]]
    tokenizer: Input[Tokenizer]
    shards: Output[TokenShards] = output()

    @classmethod
    def facets(cls, config: ShardsConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        of_tokenizer = inputs["tokenizer"][0]
        carried = {name: of_tokenizer.get(name) for name in ("tokenizer_digest", "vocab_size")}
        return {"shards": {**carried, "sequence_length": config.sequence_length, "dtype": "uint16"}}
