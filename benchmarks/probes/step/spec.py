"""The `step` stage: only the benchmark has it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from stages.core.artifacts import RawFiles
from stages.core.config import StageConfig
from stages.core.stage import Input, Output, Stage, output


class StepConfig(StageConfig):
    """A field to change, and one that makes it fail."""

    label: str = Field(default="", description="its name: two of the same work and inputs would be one result")
    trial: str = Field(default="", description="another value is another key, and another file")
    fail: bool = Field(default=False, description="fail, and write nothing")


class Step(Stage[StepConfig], env="data", revision=1):
    """Write the digest of what the parents wrote."""

    before: Sequence[Input[RawFiles]] | None = None
    after: Output[RawFiles] = output()
