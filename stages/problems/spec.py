"""The `problems` stage: problems whose answers a verifier can check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.core.artifacts import Problems as ProblemRows
from stages.core.config import Operational, StageConfig
from stages.core.preflight import PreflightContext, Probe, Problem, present
from stages.core.renamed import Renamed
from stages.core.resources import Resources
from stages.core.shrinking import Grows, Shrinks
from stages.core.stage import Output, Stage, output
from stages.lib.data.mixture_spec import MixtureSource, mixture_probes, mixture_problems


class Kind(BaseModel):
    """How hard the problems of one kind are, and how many of them there are beside the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=1.0, gt=0, description="share beside the other kinds'")
    terms: tuple[int, int] = Field(default=(2, 3), description="numbers in a problem, fewest and most")
    largest: int = Field(default=9, ge=2, description="no number in a problem or its solution is larger")
    parameters: Mapping[str, int | float | str | bool] = Field(
        default={}, description="for a kind of reasoning-gym: settings of its generator, instead of terms and largest"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Kind:
        if not 2 <= self.terms[0] <= self.terms[1]:
            raise ValueError(f"terms = {list(self.terms)}: give the fewest (2 or more) and the most")
        return self


class ProblemsConfig(StageConfig):
    """Which problems."""

    origin: Literal["hub", "machine"] = Field(
        default="hub", description="'hub': the data sets below; 'machine': generated"
    )
    sources: tuple[MixtureSource, ...] = Field(default=(), description="hub: the mixture")
    mirror: str | None = Field(
        default=None, description="hub: folder on this machine that holds the data sets as owner/name"
    )
    heldout: Annotated[float, Grows(wiring=0.2, shape=0.2)] = Field(
        default=0.01, gt=0, lt=1, description="share of the problems that is held out"
    )
    seed: int = Field(default=11, ge=0, description="which rows are drawn, generated and held out")
    verifier_rule: Annotated[
        Literal["deepscaler", "math-verify", "math-verify-strict"], Renamed("verifier", until="0.3")
    ] = Field(
        default="math-verify-strict",
        description="rule that has to accept every answer as its own reference; strict: it has to be mathematics",
    )
    max_similarity: float = Field(
        default=0.90,
        gt=0,
        le=1,
        description=(
            "hub: a problem whose embedding has a larger cosine with an earlier one goes (DeepScaleR); 1: none goes"
        ),
    )
    embedding: str = Field(
        default="ngrams",
        min_length=1,
        description=(
            "hub: what problems are compared by: folder of a sentence-embedding model, 'package:<installed package with"
            " a folder model>', or 'ngrams' (spelling, not meaning)"
        ),
    )
    verify_workers: Annotated[Operational[int], Renamed("workers", until="0.3"), Shrinks(wiring=2, shape=2)] = Field(
        default=1, ge=1, description="verifier's worker processes"
    )
    rows: Annotated[int, Shrinks(wiring=120, shape=400)] = Field(
        default=2000, gt=0, description="machine: problems to generate, at most"
    )
    kinds: Mapping[str, Kind] = Field(
        default={"sum": Kind(), "equation": Kind(), "sequence": Kind()},
        min_length=1,
        description=(
            "machine: kinds of problems: sum, product, columns, equation, sequence, largest (with worked solutions), or"
            " a generator of reasoning-gym by its name"
        ),
    )


class Problems(Stage[ProblemsConfig], env="post", revision=2, reproducible="bits"):
    """Verifiable problems in one schema, through DeepScaleR's pipeline, with counts at each step."""

    train: Output[ProblemRows] = output()
    heldout: Output[ProblemRows] = output()

    def preflight(self, config: ProblemsConfig, context: PreflightContext) -> Iterable[Problem]:
        if config.origin != "hub":
            return
        yield from mixture_problems(config.sources, config.mirror, context)
        if config.embedding != "ngrams" and not config.embedding.startswith("package:"):
            yield from present("embedding", config.embedding, "a sentence-embedding model", context)

    def probes(self, configs: Mapping[str, Any]) -> Iterable[Probe]:
        config: ProblemsConfig = configs[self.name]
        return mixture_probes(config.sources, config.mirror, "problem") if config.origin == "hub" else ()

    @classmethod
    def resources(cls, config: ProblemsConfig) -> Resources:
        return Resources(cpus=1, memory_gib=4)
