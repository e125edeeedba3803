"""The `collect` stage: where the raw text, web pages and code come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.core.artifacts import RawFiles
from stages.core.contracts import Output, Resources, Stage, StageConfig, output
from stages.formats.sources import RawFile


class CollectConfig(StageConfig):
    """Either lists of files that exist somewhere, or material of this machine in the same formats."""

    origin: Literal["listing", "machine"] = Field(
        default="listing", description="'listing': the files named below; 'machine': real material that this machine has"
    )
    text: tuple[RawFile, ...] = Field(default=(), description="text sources (paper 3.3.1: SlimPajama)")
    web: tuple[RawFile, ...] = Field(default=(), description="web sources (paper 3.3.1: Common Crawl, as DCLM)")
    code: tuple[RawFile, ...] = Field(default=(), description="code sources (paper 3.3.2: the Stack)")
    text_bytes: int = Field(default=5_000_000, gt=0, description="machine: bytes of prose to gather at most")
    web_bytes: int = Field(default=9_000_000, gt=0, description="machine: bytes of HTML to render at most")
    code_bytes: int = Field(default=3_000_000, gt=0, description="machine: bytes of source code to gather at most")
    mirrored: float = Field(default=0.2, ge=0, le=1, description="machine: share of pages that a second site serves too")
    seed: int = Field(default=7, description="machine: which files are taken, and which pages are mirrored")


class Collect(Stage[CollectConfig], env="data", revision=1):
    """List the raw text, web and code sources, or gather them from this machine."""

    text: Output[RawFiles] = output()
    web: Output[RawFiles] = output()
    code: Output[RawFiles] = output()

    @classmethod
    def resources(cls, config: CollectConfig) -> Resources:
        return Resources(cpus=1, memory_gib=1, material=config.origin == "machine")
