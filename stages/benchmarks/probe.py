"""Open one row of each data set that `benchmarks` is to mirror: `moxin check --sources` starts this program.

A request is a data set's setting (`DataSetSource`), with its name in `data_set`. Folders and object stores are read
whole, for their SHA-256: what is to be declared for them. Of the hub one row is read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.benchmarks import readers
from stages.benchmarks.spec import DataSetSource
from stages.core.errors import InputError
from stages.core.probing import serve
from stages.lib.formats.suites import data_set_sha256, split_fingerprints


def open_one(request: Mapping[str, Any]) -> str:
    """What the data set holds. Raises InputError saying what cannot be had."""
    id = str(request["data_set"])
    source = DataSetSource.model_validate({name: value for name, value in request.items() if name != "data_set"})
    if source.origin == "hub":
        return _of_hub(id, source)
    with tempfile.TemporaryDirectory() as scratch:
        rows = readers.read(id, id, source, Path(scratch))
    sha256 = data_set_sha256(split_fingerprints(rows.configs))
    if source.sha256 not in (None, sha256):
        raise InputError(f"the SHA-256 of its content is {sha256}, not {source.sha256}")
    held = [f"{name}/{split} {len(table)}" for name, splits in rows.configs.items() for split, table in splits.items()]
    return f"rows: {', '.join(held)}; sha256 {sha256}"


def _of_hub(id: str, source: DataSetSource) -> str:
    import datasets

    from stages.lib.data import probe

    config = (source.configs or datasets.get_dataset_config_names(id, revision=source.revision))[0]
    split = source.splits[0] if source.splits else None
    request = {"data_set": id, "config": config, "split": split, "revision": source.revision, "mirror": None}
    return f"configuration {config}, {probe.open_one(request)}"


if __name__ == "__main__":
    serve(open_one)
