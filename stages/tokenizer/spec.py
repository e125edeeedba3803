"""The `tokenizer` stage: a SentencePiece-like BPE vocabulary in the layout that Mistral and Moxin use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from stages.core.artifacts import Documents, Tokenizer
from stages.core.contracts import Facets, Input, Output, Resources, Stage, StageConfig, output


class TokenizerConfig(StageConfig):
    """Train a vocabulary, or adopt one."""

    origin: Literal["train", "adopt"] = Field(default="train", description="train on the documents, or take `path` over")
    vocab_size: int = Field(default=32000, gt=300, description="entries, special and byte tokens included (paper 3.1: Mistral's 32,000)")
    sample_bytes: int = Field(default=1_000_000_000, gt=0, description="text to train on, taken evenly from the documents")
    path: str | None = Field(
        default=None, description="adopt: a tokenizer.json, or a SentencePiece model (tokenizer.model), on this machine"
    )
    max_piece: int = Field(default=16, ge=1, description="longest vocabulary entry, characters (SentencePiece's default)")


class TrainTokenizer(Stage[TokenizerConfig], env="data", revision=3):
    """Train a SentencePiece-like BPE tokenizer on the corpus, or adopt an existing one."""

    documents: Sequence[Input[Documents]]
    tokenizer: Output[Tokenizer] = output()

    @classmethod
    def facets(cls, config: TokenizerConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        return {"tokenizer": {"vocab_size": config.vocab_size}} if config.origin == "train" else {}

    @classmethod
    def resources(cls, config: TokenizerConfig) -> Resources:
        return Resources(cpus=2, memory_gib=4)
