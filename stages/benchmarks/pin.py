"""What pins a data set: the commit that the hub's main branch points at, or the SHA-256 of a folder or object store.

`moxin suite add` starts this program. A request has data_set, from ('hub', a folder or s3://..), configs and splits;
the answer is a `DataSetSource` as JSON.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.benchmarks import readers
from stages.benchmarks.spec import PACKAGES, DataSetSource
from stages.core.probing import serve
from stages.lib.formats.suites import data_set_sha256, split_fingerprints

PATIENCE = 20.0
"""Seconds for the hub's answer: somebody sits before it."""


def pinned(request: Mapping[str, Any]) -> str:
    """The source as it is to be configured. Raises the client's error, or StageError, where it cannot be had."""
    id, place = str(request["data_set"]), str(request["from"])
    chosen = {"configs": request.get("configs"), "splits": request.get("splits")}
    if place == "hub" and id in PACKAGES:
        version = importlib.metadata.version(PACKAGES[id])
        return DataSetSource(origin="package", revision=version).model_dump_json(exclude_defaults=True)
    if place == "hub":
        from huggingface_hub import HfApi

        revision = HfApi().dataset_info(id, timeout=PATIENCE).sha
        return DataSetSource.model_validate({"revision": revision} | chosen).model_dump_json(exclude_defaults=True)
    folder = place if place.startswith("s3://") else str(Path(place).resolve())
    origin = "store" if place.startswith("s3://") else "folder"
    source = DataSetSource.model_validate({"origin": origin, "uri": folder} | chosen)
    with tempfile.TemporaryDirectory() as scratch:
        rows = readers.read(id, id, source, Path(scratch))
    sha256 = data_set_sha256(split_fingerprints(rows.configs))
    return source.model_copy(update={"sha256": sha256}).model_dump_json(exclude_defaults=True)


if __name__ == "__main__":
    serve(pinned)
