"""Open one record of raw files with ingest's own readers: `moxin check --sources` starts this program.

A request holds a RawSource and the configuration of the node that reads it; of a list the first file is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.core.probing import serve
from stages.ingest import work_units
from stages.ingest.readers import READERS
from stages.ingest.records import Record
from stages.ingest.spec import IngestConfig
from stages.lib.data.raw_source import RawSource
from stages.lib.data.source_lists import expanded

FIRST = 64
"""Records in which a usable one must be."""


def open_one(request: Mapping[str, Any]) -> str:
    """What the first usable record holds. Raises InputError or InfraError saying what cannot be had."""
    config = IngestConfig.model_validate(request["config"])
    file, *rest = expanded(RawSource.model_validate(request["source"]), "the list")
    if file.format == "hf":
        file, *rest = work_units.expanded([file])
    reasons: dict[str, str] = {}
    for record in islice(READERS[file.format](file, Path("."), config, None), FIRST):
        if isinstance(record, Record):
            kept = [name for name in ("url", "license", "part") if getattr(record, name)]
            files = f"{len(rest) + 1} files, the first has a " if rest else ""
            return f"{files}text of {len(record.text)} characters" + (f", with {', '.join(kept)}" if kept else "")
        reasons.setdefault(record.reason, record.place)
    places = "; ".join(f"{reason}: {place}" for reason, place in reasons.items())
    raise InputError(f"no usable record among the first {FIRST}: {places}" if places else "it holds no record")


if __name__ == "__main__":
    serve(open_one)
