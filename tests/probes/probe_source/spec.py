"""The `probe_source` stage: documents out of nothing, and failures on request."""

from __future__ import annotations

from pydantic import Field

from stages.core.artifacts import Documents
from stages.core.config import Operational, StageConfig
from stages.core.stage import Output, Stage, output


class SourceConfig(StageConfig):
    """What to write, and how to fail."""

    text: str = Field(default="a", description="the text of each part")
    parts: int = Field(default=1, ge=0, description="files to write")
    act: Operational[str] = Field(default="", description="a failure: see run.py")
    sentinel: Operational[str | None] = Field(
        default=None, description="fail only while this file does not exist, and make it"
    )


class Source(Stage[SourceConfig], env="data", revision=1):
    """Write a few documents."""

    documents: Output[Documents] = output()
