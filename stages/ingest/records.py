"""What a reader yields: a usable record, or why one is not; and a row of JSON or Parquet made into one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stages.ingest.fields import label, value_at
from stages.ingest.spec import IngestConfig

MISSING = object()
DAMAGED = "truncated or damaged file"


@dataclass(frozen=True)
class Record:
    """A usable record. at: its place in the file, which names it: a byte offset, or a number."""

    text: str
    url: str = ""
    license: str = ""
    part: str = ""
    """Of its source: a subset's name."""
    at: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Bad:
    """An unusable record: why, and where (`file:line`, `file@offset`)."""

    reason: str
    place: str


def record(value: Any, place: str, at: int, config: IngestConfig) -> Record | Bad:
    """A row by the configured fields."""
    if not isinstance(value, dict):
        return Bad("not a JSON object", place)
    text = value_at(value, config.text_field, MISSING)
    if text is MISSING:
        return Bad(f"no field '{config.text_field}'", place)
    if not isinstance(text, str):
        return Bad(f"'{config.text_field}' is not a string", place)
    if len(text) > config.max_record_bytes:
        return Bad("too long", place)
    if not text.strip():
        return Bad("empty text", place)
    try:
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError:  # a JSON escape such as \ud800 makes a string that no file can hold
        return Bad("invalid UTF-8", place)
    url, license, part = (
        label(value_at(value, path)) if path else ""
        for path in (config.url_field, config.license_field, config.source_field)
    )
    return Record(text, url, license, part, at)
