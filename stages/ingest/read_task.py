"""One piece of `ingest`'s work: files, or a part of one, into documents of its own, with the numbers that it adds to
the statistics.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core.artifacts import FileEntry
from stages.ingest import page_filters
from stages.ingest.readers import READERS
from stages.ingest.records import Bad
from stages.ingest.spec import IngestConfig
from stages.ingest.work_units import NOWHERE
from stages.lib.formats import raw_file
from stages.lib.formats.documents import DocumentWriter
from stages.lib.formats.sources import RawFile
from stages.lib.formats.uris import shown

EXAMPLES = 3
"""Places that are named for each reason; the rest is counted."""
LANGUAGE_EVERY, LANGUAGE_CHARACTERS = 8, 1000
"""The language is guessed of every eighth document's beginning, for the statistics."""


@dataclass
class Numbers:
    """What was read and what came of it; JSON values throughout, and `add` adds two."""

    records: int = 0
    documents: int = 0
    text_bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_bytes: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)
    """By the number of bits of the length in characters."""
    per_source: Counter[str] = field(default_factory=Counter)
    per_license: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    """Files by the address that served them instead of their own."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """The first places of each reason why a record was skipped."""

    def skip(self, bad: Bad) -> None:
        self.skipped[bad.reason] += 1
        self.name(bad.reason, [bad.place])

    def name(self, reason: str, places: Sequence[str]) -> None:
        known = self.places.setdefault(reason, [])
        known += places[: EXAMPLES - len(known)]

    def add(self, other: Mapping[str, Any]) -> None:
        """Add the numbers of a piece that comes after this one."""
        for name, value in other.items():
            if name == "places":
                for reason, places in value.items():
                    self.name(reason, places)
            elif isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)
            else:
                getattr(self, name).update(value)


def read(
    folder: Path,
    files: Sequence[Mapping[str, Any]],
    raw: Mapping[str, Any],
    config: Mapping[str, Any],
    part: Sequence[int] | None = None,
    size: int | None = None,
    records: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Read files (`RawFile`), or a part of one, or the first `records` records of each; returns `Numbers` as a
    dictionary.

    raw: those of the files that lie in the listing's artifact, path to entry; size: bytes of the file that the part was
    cut of, which a mirror must have too.
    Raises InputError or InfraError naming the file.
    """
    settings, numbers = IngestConfig.model_validate(config), Numbers()
    entries = {path: FileEntry.model_validate(entry) for path, entry in raw.items()}
    raw_file.served.set(numbers.served)
    token = raw_file.required_size.set(None if part is None else size)
    kept = raw_file.stored.set(entries)
    try:
        with DocumentWriter(folder) as writer:
            for number, value in enumerate(files):
                file, most = RawFile.model_validate(value), None if records is None else records[number]
                _read_file(file, NOWHERE, settings, None if part is None else (part[0], part[1]), most, writer, numbers)
    finally:
        raw_file.required_size.reset(token)
        raw_file.stored.reset(kept)
    numbers.documents, numbers.text_bytes = writer.documents, writer.text_bytes
    if not writer.documents:
        (folder / "part-00000.parquet").unlink()
    return dict(vars(numbers))


def _read_file(
    file: RawFile,
    raw: Path,
    config: IngestConfig,
    part: tuple[int, int] | None,
    most: int | None,
    writer: DocumentWriter,
    numbers: Numbers,
) -> None:
    from resiliparse.parse.lang import detect_fast

    name, left, last, again = shown(file.uri), most, -1, 0
    for record in READERS[file.format](file, raw, config, part):
        numbers.records += 1
        if isinstance(record, Bad):
            numbers.skip(record)
        else:
            again, last = (
                (again + 1 if record.at == last else 0),
                record.at,
            )  # in a WARC packed as a whole, many have one offset
            place = f"{record.at}+{again}" if again else f"{record.at}"
            text, rule = record.text, ""
            if config.heuristics == "refinedweb":
                text, rule = page_filters.apply(record, config)
            numbers.lengths[str(len(text).bit_length())] += 1
            if rule:
                numbers.dropped[rule] += 1
                numbers.dropped_bytes[rule] += len(record.text.encode())
            else:
                if writer.documents % LANGUAGE_EVERY == 0:
                    numbers.languages[detect_fast(text[:LANGUAGE_CHARACTERS])[0]] += 1
                identity = hashlib.sha256(f"{name}\0{place}".encode()).hexdigest()[:24]
                source = f"{file.source}/{record.part}" if record.part else file.source
                license = record.license or file.license
                writer.add(identity, text, source, record.url, license)
                numbers.per_source[source] += 1
                numbers.per_license[license] += 1
        if left is not None:
            left -= 1
            if left == 0:
                return
