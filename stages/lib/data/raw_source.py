"""Raw sources as a user names them: a file, or a published list of files, of which all or some are taken.

    { uri = "https://../400m-1x.txt", listed = true, take = 100, rewrite = { "s3://commoncrawl/" =
    "https://data.commoncrawl.org/" }, .. }

A list is a text file with one address a line, plain or .gz. `take` files are drawn by a hash of their addresses: a
uniform sample that a larger one contains. Light to import: `source_lists` fetches a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from stages.core.shrinking import Rehearsal
from stages.lib.formats.sources import RawFile


class RawSource(RawFile):
    """A raw file, or a list of such."""

    listed: bool = Field(default=False, description="`uri` is a text file that lists the files, one address a line")
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="listed: of the list; unset: not checked"
    )
    take: int | None = Field(
        default=None, gt=0, description="listed: files to take, drawn by a hash of their addresses; unset: all"
    )
    rewrite: Mapping[str, str] = Field(
        default={},
        description=(
            "listed: {how addresses begin: how they begin where they are read}; the listed address becomes a mirror"
        ),
    )

    @model_validator(mode="after")
    def _belongs(self) -> RawSource:
        if not self.listed and (self.sha256 or self.take or self.rewrite):
            raise ValueError("sha256, take and rewrite go with listed = true")
        return self

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """Two files of a list."""
        return values | {"take": min(self.take or 2, 2)} if self.listed else values
