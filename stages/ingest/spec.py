"""The `ingest` stage: raw files of any kind into one schema of documents."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.core.artifacts import Documents, RawFiles
from stages.core.contracts import Input, Output, Resources, Stage, StageConfig, output


class IngestConfig(StageConfig):
    """What counts as a usable record."""

    text_field: str = Field(default="text", min_length=1, description="JSON and Parquet: the field that holds the text")
    url_field: str = Field(default="url", description="JSON and Parquet: field with the address, where there is one")
    license_field: str = Field(default="license", description="JSON and Parquet: field with the licence, where there is one")
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
        default="none", description="rules that pages must keep: RefinedWeb's, as DCLM-BASELINE configures them (paper 3.3.1)"
    )
    language_model: str | None = Field(
        default=None, description="heuristics: a fastText model of languages (lid.176.bin); unset: the language is not looked at"
    )
    limit: int | None = Field(default=None, gt=0, description="documents to take at most, for trials")


class Ingest(Stage[IngestConfig], env="data", revision=1):
    """Read text, web pages or code into documents; unusable records are counted by reason."""

    raw: Input[RawFiles]
    documents: Output[Documents] = output()

    @classmethod
    def resources(cls, config: IngestConfig) -> Resources:
        return Resources(cpus=1, memory_gib=2)
