"""The `wait` stage: only the benchmark has it."""

from __future__ import annotations

from pydantic import Field

from stages.core.artifacts import RawFiles
from stages.core.config import StageConfig
from stages.core.stage import Input, Output, Stage, output


class WaitConfig(StageConfig):
    """How long, and a number that makes a key new."""

    seconds: float = Field(default=0.5, ge=0, description="how long to wait")
    trial: str = Field(default="", description="another value is another key")


class Wait(Stage[WaitConfig], env="data", revision=1):
    """Wait, and write one file."""

    before: Input[RawFiles] | None = None
    after: Output[RawFiles] = output()
