"""A mixture of data sets: which share of each goes in, drawn by seed, and what was taken of each.

    sources = [{ data_set = "allenai/tulu-3-sft-mixture", fraction = 1.0 }, { data_set = "BAAI/Infinity-Instruct", config = "Gen", cap = 100_000 }]
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Source(BaseModel):
    """One data set of a mixture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_set: str = Field(pattern=r"^[^/\s]+/[^/\s]+$", description="the hub's name of it, owner/name")
    config: str = Field(default="default", min_length=1, description="its configuration")
    split: str = Field(default="train", min_length=1, description="its split")
    revision: str | None = Field(default=None, description="commit on the hub; unset: what the main branch points at, recorded")
    fraction: float = Field(default=1.0, gt=0, le=1, description="share of its rows that goes in")
    cap: int | None = Field(default=None, gt=0, description="rows that go in, at most")
    license: str | None = Field(default=None, description="SPDX expression, where the card names none or another")
    drop_system: bool = Field(default=False, description="leave its system turns out")
