"""The `tokenize` stage: documents into packed, shuffled windows of one length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, Documents, Tokenizer, TokenShards
from stages.core.config import Operational, StageConfig
from stages.core.preflight import PreflightContext, Problem
from stages.core.resources import Resources
from stages.core.scale import Scale, amount
from stages.core.shrinking import Grows, Rehearsal, Shrinks
from stages.core.stage import Facets, Input, Output, Reading, Stage, output
from stages.lib.data.amounts import BYTES_A_TOKEN, STORED
from stages.lib.data.amounts import shards as text_shards

TOKEN_BYTES = 2
"""A token id below 65,536 (`facets`: dtype)."""


GIB = float(1 << 30)


class TokenizeConfig(StageConfig):
    """Window length, mixture and order."""

    sequence_length: Annotated[int, Shrinks(wiring=128)] = Field(
        default=2000, gt=1, description="token ids in a window (paper 3.4: 2,000, then 4,000)"
    )
    weights: tuple[float, ...] | None = Field(
        default=None, description="share of each input in the tokens, in wiring order; unset: as much as each has"
    )
    max_epochs: Annotated[float, Grows(wiring=1000.0, shape=1000.0)] = Field(
        default=4.0, gt=0, description="how often a small input may be repeated to reach its share"
    )
    draw: tuple[tuple[float, float], ...] | None = Field(
        default=None,
        description=(
            "of each input the documents whose hash lies in [from, to) of [0, 1): nodes with disjoint ranges share"
            " none; unset: all"
        ),
    )
    max_tokens: Annotated[int | None, Shrinks(wiring=100_000, shape=2_000_000)] = Field(
        default=None, gt=0, description="tokens to write at most"
    )
    heldout: Annotated[float, Grows(wiring=0.1, shape=0.1)] = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of documents kept out of training, by a hash of their id: the same at any length",
    )
    seed: int = Field(default=1, description="order of the windows")
    threads: Operational[int] = Field(
        default=2, ge=1, description="encoder threads in each process; they never change the result"
    )
    workers: Annotated[Operational[int | Literal["ray", "slurm", "kubernetes"]], Shrinks(wiring=2, shape=2)] = Field(
        default=1,
        description=(
            "processes, 'ray': the cluster that RAY_ADDRESS names, or 'slurm', 'kubernetes': arrays of jobs by that"
            " launcher; never changes the result"
        ),
    )

    @model_validator(mode="after")
    def _ranges(self) -> TokenizeConfig:
        for first, end in self.draw or ():
            if not 0 <= first < end <= 1:
                raise ValueError(f"draw = [{first}, {end}]: give two numbers of 0 to 1, the smaller first")
        if self.draw is not None and self.weights is not None and len(self.draw) != len(self.weights):
            raise ValueError(
                f"draw has {len(self.draw)} ranges, but weights {len(self.weights)} entries: give one for each input"
            )
        return self

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """A hundredth of a few documents is none: every node draws from all of them."""
        return values | {"draw": None if self.draw is None else ((0.0, 1.0),) * len(self.draw)}


class Tokenize(Stage[TokenizeConfig], env="data", revision=5, reproducible="bits"):
    """Encode documents and pack them into shuffled windows of one length."""

    reads: ClassVar[Mapping[str, Reading]] = {"documents": "shards", "tokenizer": "stream"}

    documents: Sequence[Input[Documents]]
    tokenizer: Input[Tokenizer]
    shards: Output[TokenShards] = output()

    @classmethod
    def scale(cls, config: TokenizeConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Scale:
        """Drawn documents are encoded once; their windows are written, merged by key and written as shards."""
        sources = inputs["documents"]
        ranges = config.draw or [(0.0, 1.0)] * len(sources)
        drawn = [amount([one], "text_bytes") * (end - first) for one, (first, end) in zip(sources, ranges, strict=True)]
        tokens = sum(drawn) / BYTES_A_TOKEN * (1.0 if config.weights is None else config.max_epochs)
        tokens = min(tokens, float(config.max_tokens or tokens))
        read = min(sum(drawn), tokens * BYTES_A_TOKEN)
        size, (tasks, _) = TOKEN_BYTES * tokens, text_shards(read)
        deals = 1 if size <= 256 * GIB else 2  # packing.FAN groups of GROUP_BYTES
        return Scale(
            outputs={
                "shards": {"tokens": tokens, "windows": tokens / config.sequence_length, "bytes": size}
                | {"files": max(1.0, size / (256 << 20))}
            },
            work={"tokenize.encode": read, "tokenize.shuffle": (1 + deals) * size},
            tasks=tasks + (2 * deals + 4) * size / GIB,
            task_disk=max(2 * size / tasks, GIB),  # with the file of the task before, on its way
            task_memory=2 * GIB,
            read=read * STORED + (1 + deals) * size,
            written=(1 + deals) * size,
            notes=(f"{BYTES_A_TOKEN:g} bytes of text a token",),
        )

    @classmethod
    def facets(cls, config: TokenizeConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        source = inputs["tokenizer"][0]
        vocabulary = source.get("vocab_size")
        dtype = None if vocabulary is None else ("uint16" if int(vocabulary) <= 1 << 16 else "uint32")
        known = {"tokenizer_digest": source.get("tokenizer_digest"), "vocab_size": vocabulary, "dtype": dtype}
        return {"shards": {**known, "sequence_length": config.sequence_length}}

    def preflight(self, config: TokenizeConfig, context: PreflightContext) -> Iterable[Problem]:
        count = len(self.wires["documents"])
        for key, given in (("weights", config.weights), ("draw", config.draw)):
            if given is not None and len(given) != count:
                yield Problem(
                    key,
                    str(list(given)),
                    f"{len(given)} entries for {count} inputs",
                    f"give one for each of {', '.join(o.node.name for o in self.wires['documents'])}",
                )

    @classmethod
    def resources(cls, config: TokenizeConfig) -> Resources:
        workers = config.workers if isinstance(config.workers, int) else 1
        return Resources(cpus=config.threads * workers, memory_gib=max(4, 2 * workers))
