"""The listing of a `RawFiles` artifact: `listing.jsonl`, one raw source file a row, by path or address.

A small run lists files that lie in the artifact itself; a large one lists addresses (`s3://`, `https://`, `hf://`), and
nothing is copied. The stages that read it do not know the difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.errors import InputError
from stages.core.json_text import parsed_json

LISTING = "listing.jsonl"
Format = Literal["jsonl", "parquet", "warc", "code", "hf"]


class RawFile(BaseModel):
    """One raw source file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(
        min_length=1,
        description=(
            "a path inside the artifact, file:///.., s3://bucket/key, https://.., hf://owner/name@revision/file, or a"
            " Hugging Face data set as hf://owner/name@revision?config=..&split=.. (split defaults to train)"
        ),
    )
    format: Format = Field(
        description="what is in it: 'hf' for a data set of the hub, whose files are read by their endings"
    )
    mirrors: tuple[str, ...] = Field(
        default=(), description="other addresses of the same bytes, tried in order where `uri` cannot be had"
    )
    source: str = Field(min_length=1, description="name that the documents carry, for reports and mixtures")
    license: str = Field(default="", description="SPDX identifier, where the whole file has one")


def write_listing(folder: Path, rows: Iterable[RawFile]) -> None:
    """Write the listing in the order given."""
    with open(folder / LISTING, "w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(row.model_dump_json(exclude_defaults=True) + "\n")


def read_listing(folder: Path) -> list[RawFile]:
    """Read a listing. Raises InputError naming the line that is not one."""
    try:
        return parsed_listing((folder / LISTING).read_bytes())
    except OSError as error:
        raise InputError(f"{LISTING} cannot be read: {error}") from error


def parsed_listing(data: bytes) -> list[RawFile]:
    """The rows of a listing. Raises InputError naming the line that is not one."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{LISTING} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        try:
            rows.append(RawFile.model_validate(parsed_json(line)))
        except (ValueError, ValidationError) as error:
            raise InputError(f"{LISTING}, line {number} is not a raw file: {str(error).splitlines()[0]}") from error
    return rows
