"""The `tokenizer` stage: a SentencePiece-like BPE vocabulary in the layout that Mistral and Moxin use."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.core.artifacts import Documents, Tokenizer
from stages.core.config import Operational, StageConfig
from stages.core.preflight import PreflightContext, Problem, model_file
from stages.core.resources import Resources
from stages.core.shrinking import Rehearsal, Shrinks
from stages.core.stage import Facets, Input, Output, Reading, Stage, output


class TokenizerConfig(StageConfig):
    """Train a vocabulary, or adopt one."""

    origin: Literal["train", "adopt"] = Field(
        default="train", description="train on the documents, or take `path` over"
    )
    vocab_size: Annotated[int, Shrinks(wiring=1024)] = Field(
        default=32000,
        gt=300,
        description=(
            "entries, special and byte tokens included (paper 3.1: Mistral's 32,000); adopt: as many as the file has"
        ),
    )
    sample_bytes: Annotated[int, Shrinks(wiring=1_000_000, shape=20_000_000)] = Field(
        default=1_000_000_000, gt=0, description="text to train on, taken evenly from the documents"
    )
    path: Operational[str | None] = Field(
        default=None,
        description=(
            "adopt: a tokenizer.json, a SentencePiece model (tokenizer.model), or a model's folder with one, on this"
            " machine"
        ),
    )
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="adopt: of that file: part of the key, unlike its path"
    )
    max_piece: int = Field(
        default=16, ge=1, description="longest vocabulary entry, characters (SentencePiece's default)"
    )

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """A vocabulary that is adopted is as large as it is."""
        return values | {"vocab_size": self.vocab_size} if self.origin == "adopt" else values


class TrainTokenizer(Stage[TokenizerConfig], env="data", revision=5, reproducible="bits"):
    """Train a SentencePiece-like BPE tokenizer on the corpus, or adopt an existing one."""

    reads: ClassVar[Mapping[str, Reading]] = {"documents": "stream"}

    documents: Sequence[Input[Documents]]
    tokenizer: Output[Tokenizer] = output()

    @classmethod
    def facets(cls, config: TokenizerConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        return {"tokenizer": {"vocab_size": config.vocab_size}}  # of what is adopted, too: another size is refused

    @classmethod
    def unread(cls, config: TokenizerConfig) -> Collection[str]:
        return ("documents",) if config.origin == "adopt" else ()

    def preflight(self, config: TokenizerConfig, context: PreflightContext) -> Iterable[Problem]:
        if config.origin == "adopt":
            yield from model_file(
                "path",
                config.path,
                config.sha256,
                "a tokenizer.json or tokenizer.model",
                context,
                ("tokenizer.model", "tokenizer.json"),
            )

    @classmethod
    def resources(cls, config: TokenizerConfig) -> Resources:
        return Resources(cpus=2, memory_gib=4)
