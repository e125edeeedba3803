"""The `ingest` stage: raw files of any kind into one schema of documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stages.core.artifacts import ArtifactManifest, Documents, RawFiles
from stages.core.config import Operational, StageConfig
from stages.core.preflight import PreflightContext, Probe, Problem, model_file
from stages.core.resources import Resources
from stages.core.scale import Scale, amount
from stages.core.shrinking import Shrinks
from stages.core.stage import Input, Output, Reading, Stage, output
from stages.lib.data.amounts import PART_BYTES, REFINEDWEB_KEPT, STORED, documents
from stages.lib.formats.uris import shown

BANNED = ("domains", "strict", "hard", "soft")
"""Lists of banned addresses (url_filter.py)."""


class IngestConfig(StageConfig):
    """What counts as a usable record."""

    text_field: str = Field(
        default="text", min_length=1, description="JSON and Parquet: the field that holds the text; a.b is field b of a"
    )
    url_field: str = Field(default="url", description="JSON and Parquet: field with the address, where there is one")
    license_field: str = Field(
        default="license",
        description="JSON and Parquet: field with the licence, where there is one; a list's entries all hold ('AND')",
    )
    source_field: str | None = Field(
        default=None,
        description=(
            "JSON and Parquet: field that names the part of its source a row is from; documents carry 'source/part'"
        ),
    )
    max_record_bytes: int = Field(
        default=64 << 20, gt=0, description="a longer line, page or file is skipped and counted; bounds memory"
    )
    main_content: bool = Field(
        default=True, description="web pages: leave navigation and boilerplate out (resiliparse main_content, as DCLM)"
    )
    max_bad_fraction: float = Field(
        default=0.5, ge=0, le=1, description="more unusable records than this: the source is taken to be broken"
    )
    heuristics: Literal["none", "refinedweb"] = Field(
        default="none",
        description="rules that pages must keep: RefinedWeb's, as DCLM-BASELINE configures them (paper 3.3.1)",
    )
    language: Literal["en", "none"] = Field(
        default="en",
        description=(
            "heuristics: pages of this language stay, by `language_model` at 0.65 (DCLM); 'none': it is not looked at"
        ),
    )
    language_model: Operational[str | None] = Field(
        default=None, description="heuristics: fastText's model of languages (lid.176.bin), a file"
    )
    language_model_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="heuristics: of that file: part of the key, unlike its path",
    )
    banned: Operational[Mapping[str, str]] = Field(
        default={},
        description="heuristics: files of banned addresses (stages/ingest/url_filter.py): domains, strict, hard, soft",
    )
    banned_sha256: Mapping[str, str] = Field(
        default={}, description="heuristics: of each of those files: part of the key, unlike their paths"
    )
    limit: Annotated[int | None, Shrinks(wiring=1000, shape=2000)] = Field(
        default=None,
        gt=0,
        description="records to read at most, usable or not, drawn over the files of the listing; for trials",
    )
    workers: Annotated[Operational[int | Literal["ray", "slurm", "kubernetes"]], Shrinks(wiring=2, shape=2)] = Field(
        default=1,
        description=(
            "processes, 'ray': the cluster that RAY_ADDRESS names, or 'slurm', 'kubernetes': arrays of jobs by that"
            " launcher; never changes the result"
        ),
    )

    @model_validator(mode="after")
    def _workers_fit(self) -> IngestConfig:
        if isinstance(self.workers, int) and self.workers < 1:
            raise ValueError("workers must be 1 or more, 'ray', 'slurm' or 'kubernetes'")
        return self

    @field_validator("banned", "banned_sha256")
    @classmethod
    def _lists(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if unknown := sorted(value.keys() - set(BANNED)):
            raise ValueError(f"there is no list {unknown[0]!r}; there are: {', '.join(BANNED)}")
        return value


class Ingest(Stage[IngestConfig], env="data", revision=4, reproducible="bits"):
    """Read text, web pages or code into documents; unusable records are counted by reason."""

    reads: ClassVar[Mapping[str, Reading]] = {"raw": "stream"}

    raw: Input[RawFiles]
    documents: Output[Documents] = output()

    @classmethod
    def scale(cls, config: IngestConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Scale:
        """Every raw byte is fetched once; pages of WARC are taken apart, rules ask every page."""
        raw = inputs["raw"]
        count, text, size = amount(raw, "documents"), amount(raw, "text_bytes"), amount(raw, "source_bytes")
        count, text = (x * min(1.0, (config.limit or count) / count) for x in (count, text))
        kept = 1.0 if config.heuristics == "none" else REFINEDWEB_KEPT
        tasks = max(amount(raw, "files"), size / PART_BYTES)
        return Scale(
            outputs={"documents": documents(count * kept, text * kept)},
            work={"ingest.text": text} | ({} if config.heuristics == "none" else {"ingest.refinedweb": count}),
            tasks=tasks,
            task_disk=text * kept / tasks * STORED + PART_BYTES,
            task_memory=2 << 30,
            outside=size,
            notes=() if config.heuristics == "none" else (f"RefinedWeb's rules keep {REFINEDWEB_KEPT:.0%} of pages",),
        )

    def preflight(self, config: IngestConfig, context: PreflightContext) -> Iterable[Problem]:
        if config.heuristics == "none":
            return
        if config.language == "en":
            for problem in model_file(
                "language_model", config.language_model, config.language_model_sha256, "fastText's lid.176.bin", context
            ):
                yield replace(problem, remedy=f"{problem.remedy}; or set language = 'none'")
        for name in sorted({*config.banned, *config.banned_sha256}):
            for problem in model_file(
                "banned", config.banned.get(name), config.banned_sha256.get(name), "the list", context
            ):
                yield replace(problem, key=f"{problem.key}.{name}")

    def probes(self, configs: Mapping[str, Any]) -> Iterable[Probe]:
        config: IngestConfig = configs[self.name]
        (raw,) = self.wires["raw"]
        listed = configs[raw.node.name]
        for number, file in enumerate(
            getattr(listed, raw.port, ()) if getattr(listed, "origin", "") == "listing" else ()
        ):
            request = {"source": file.model_dump(mode="json"), "config": config.model_dump(mode="json")}
            yield Probe(f"{raw.port}.{number}", shown(file.uri), "stages.ingest.probe", request)

    @classmethod
    def resources(cls, config: IngestConfig) -> Resources:
        cpus = config.workers if isinstance(config.workers, int) else 1
        return Resources(cpus=cpus, memory_gib=2 * cpus)
