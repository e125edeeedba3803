"""The `evaluate_vlm` stage: the seven visual benchmarks of Table 8, each beside its blind control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.core.artifacts import ArtifactManifest, EvalReport, ImageSuite, Model
from stages.core.config import Operational, StageConfig
from stages.core.errors import ConfigError
from stages.core.resources import Resources, Work
from stages.core.shrinking import Rehearsal, Shrinks
from stages.core.stage import Facets, Input, Output, Stage, output

BenchmarkName = Literal["gqa", "vizwiz", "refcoco+", "ocid-ref", "vsr", "pope", "tally-qa"]
ALL: tuple[BenchmarkName, ...] = ("gqa", "vizwiz", "refcoco+", "ocid-ref", "vsr", "pope", "tally-qa")
TABLE = "table_8"
"""The paper's table that the benchmarks fill, and the column of each."""
COLUMNS: Mapping[str, str] = {
    "gqa": "GQA",
    "vizwiz": "VizWiz",
    "refcoco+": "RefCOCO+",
    "ocid-ref": "OCID-Ref",
    "vsr": "VSR",
    "pope": "POPE",
    "tally-qa": "TallyQA",
}
ARCHITECTURE = "MoxinVLM"


class EvaluateVlmConfig(StageConfig):
    """Which benchmarks, and how the model answers. Defaults: vlm-evaluation's (paper 7.5)."""

    benchmarks: tuple[BenchmarkName, ...] = Field(default=ALL, min_length=1, description="in the order of Table 8")
    limit: Annotated[int | None, Shrinks(wiring=2, shape=8)] = Field(
        default=None, gt=0, description="questions of each benchmark at most, first ones; unset: all"
    )
    max_new_tokens: Annotated[int, Shrinks(wiring=16, shape=64)] = Field(
        default=128, gt=0, description="longest written answer (vlm-evaluation); greedy"
    )
    blind: bool = Field(
        default=True,
        description="score every question again with another question's image: what habit alone would score",
    )
    seed: int = Field(default=21, description="which image takes which one's place in the blind control")
    pictures: int = Field(
        default=3, ge=0, description="questions of each benchmark that are kept with their image, for the picture grid"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="of the weights (vlm-evaluation: bf16); fp32 on a CPU"
    )
    batch_size: Operational[int] = Field(default=16, gt=0, description="questions in a forward pass")
    threads: Operational[int] = Field(default=2, gt=0, description="CPU threads")
    device: Operational[Literal["auto", "cpu", "cuda"]] = Field(
        default="auto", description="auto: a GPU if there is one"
    )

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """At level `shape` a batch is full: one that is not takes nearly as long."""
        if rehearsal.level != "shape":
            return values
        full = max(values["limit"], self.batch_size)
        return values | {"limit": min(full, self.limit or full)}


class EvaluateVlm(Stage[EvaluateVlmConfig], env="vlm", revision=5, reproducible="same hardware"):
    """Score a vision-language model on the seven benchmarks of Table 8, with a blind control beside every score."""

    untimed: ClassVar[str] = "what its suite asks is known once it is there"

    model: Input[Model]
    suite: Input[ImageSuite]
    report: Output[EvalReport] = output()

    @classmethod
    def check_facets(
        cls, node: str, config: EvaluateVlmConfig, inputs: Mapping[str, Sequence[tuple[str, Facets]]]
    ) -> None:
        super().check_facets(node, config, inputs)
        producer, facets = inputs["model"][0]
        if facets.get("architecture") not in (None, ARCHITECTURE):
            raise ConfigError(
                f"node {node}: its model from {producer} is a {facets['architecture']}, which sees no images; wire a"
                f" {ARCHITECTURE}"
            )

    @classmethod
    def resources(cls, config: EvaluateVlmConfig) -> Resources:
        return Resources(cpus=config.threads, memory_gib=4)

    @classmethod
    def work(cls, config: EvaluateVlmConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        return Work()  # depends on how long the answers are: an earlier result is the only honest estimate

    @classmethod
    def smaller(cls, config: EvaluateVlmConfig) -> EvaluateVlmConfig | None:
        return config.halved("batch_size")
