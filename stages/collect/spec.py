"""The `collect` stage: where the raw text, web pages and code come from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field

from stages.core.artifacts import RawFiles
from stages.core.config import StageConfig
from stages.core.preflight import PreflightContext, Problem, data_set
from stages.core.resources import Resources
from stages.core.shrinking import Shrinks
from stages.core.stage import Output, Stage, output
from stages.lib.data.raw_source import RawSource


class CollectConfig(StageConfig):
    """Either lists of files that exist somewhere, or material of this machine in the same formats."""

    origin: Literal["listing", "machine"] = Field(
        default="listing",
        description="'listing': the files named below; 'machine': real material that this machine has",
    )
    text: tuple[RawSource, ...] = Field(default=(), description="text sources (paper 3.3.1: SlimPajama)")
    web: tuple[RawSource, ...] = Field(default=(), description="web sources (paper 3.3.1: Common Crawl, as DCLM)")
    code: tuple[RawSource, ...] = Field(default=(), description="code sources (paper 3.3.2: the Stack)")
    text_bytes: Annotated[int, Shrinks(wiring=2_000_000, shape=5_000_000)] = Field(
        default=5_000_000, gt=0, description="machine: bytes of prose to gather at most"
    )
    web_bytes: Annotated[int, Shrinks(wiring=1_000_000, shape=9_000_000)] = Field(
        default=9_000_000, gt=0, description="machine: bytes of HTML to render at most"
    )
    code_bytes: Annotated[int, Shrinks(wiring=400_000, shape=3_000_000)] = Field(
        default=3_000_000, gt=0, description="machine: bytes of source code to gather at most"
    )
    mirrored: float = Field(
        default=0.2, ge=0, le=1, description="machine: share of pages that a second site serves too"
    )
    seed: int = Field(default=7, description="machine: which files are taken, and which pages are mirrored")


class Collect(Stage[CollectConfig], env="data", revision=2, reproducible="no"):
    """List the raw text, web and code sources, or gather them from this machine."""

    untimed: ClassVar[str] = "it asks each source for its listing once"

    text: Output[RawFiles] = output()
    web: Output[RawFiles] = output()
    code: Output[RawFiles] = output()

    def preflight(self, config: CollectConfig, context: PreflightContext) -> Iterable[Problem]:
        if config.origin != "listing":
            return
        for port, rows in (("text", config.text), ("web", config.web), ("code", config.code)):
            if not rows:
                yield Problem(port, "[]", "empty", "list at least one file, or set origin = 'machine'")
            for number, row in enumerate(rows):
                yield from _address(f"{port}.{number}.uri", row.uri, context)

    @classmethod
    def resources(cls, config: CollectConfig) -> Resources:
        return Resources(cpus=1, memory_gib=1, material=config.origin == "machine")


def _address(key: str, uri: str, context: PreflightContext) -> Iterable[Problem]:
    """What is wrong with the address of a raw file, as far as the address itself says it."""
    parts = urlsplit(uri)
    if not parts.scheme:
        yield Problem(key, uri, "no address", "write file:///.., s3://.., https://.. or hf://..")
    elif parts.scheme == "file" and context.here and not os.path.exists(unquote(parts.path)):
        yield Problem(key, uri, "no such file", "fetch it, or correct the path")
    elif parts.scheme == "hf" and parts.netloc:  # hf:///a/folder is a folder of this machine
        owner, _, rest = f"{parts.netloc}{parts.path}".partition("/")
        name, _, revision = rest.partition("@")
        yield from data_set(key, f"{owner}/{name}", revision.partition("/")[0], None, context)
