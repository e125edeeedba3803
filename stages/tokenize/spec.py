"""The `tokenize` stage: documents into packed, shuffled windows of one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from stages.core.artifacts import Documents, Tokenizer, TokenShards
from stages.core.contracts import Facets, Input, Operational, Output, Resources, Stage, StageConfig, output


class TokenizeConfig(StageConfig):
    """Window length, mixture and order."""

    sequence_length: int = Field(default=2000, gt=1, description="token ids in a window (paper 3.4: 2,000, then 4,000)")
    weights: tuple[float, ...] | None = Field(
        default=None, description="share of each input in the tokens, in wiring order; unset: as much as each has"
    )
    max_epochs: float = Field(default=4.0, gt=0, description="how often a small input may be repeated to reach its share")
    max_tokens: int | None = Field(default=None, gt=0, description="tokens to write at most")
    heldout: float = Field(
        default=0.0, ge=0, lt=1, description="share of documents kept out of training, by a hash of their id: the same at any length"
    )
    seed: int = Field(default=1, description="order of the windows")
    threads: Operational[int] = Field(default=2, ge=1, description="encoder threads in each process; they never change the result")
    workers: Operational[int | Literal["ray", "slurm"]] = Field(
        default=1, description="processes that encode, 'ray': the cluster that RAY_ADDRESS names, or 'slurm': arrays of jobs; never changes the result"
    )
    work: Operational[str | None] = Field(
        default=None, description="folder that outlives an attempt and that all workers see: finished shards are not done again"
    )


class Tokenize(Stage[TokenizeConfig], env="data", revision=2):
    """Encode documents and pack them into shuffled windows of one length."""

    documents: Sequence[Input[Documents]]
    tokenizer: Input[Tokenizer]
    shards: Output[TokenShards] = output()

    @classmethod
    def facets(cls, config: TokenizeConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        source = inputs["tokenizer"][0]
        vocabulary = source.get("vocab_size")
        dtype = None if vocabulary is None else ("uint16" if int(vocabulary) <= 1 << 16 else "uint32")
        known = {"tokenizer_digest": source.get("tokenizer_digest"), "vocab_size": vocabulary, "dtype": dtype}
        return {"shards": {**known, "sequence_length": config.sequence_length}}

    @classmethod
    def resources(cls, config: TokenizeConfig) -> Resources:
        return Resources(cpus=config.threads * (config.workers if isinstance(config.workers, int) else 1), memory_gib=4)
