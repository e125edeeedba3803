"""Data sets described for machines: Croissant 1.0 metadata of what a node made, by the `mlcroissant` library.

    croissant.write(folder, result, ["Apache-2.0"])      croissant.json in the folder

Files are named as `<port>/<path>`, each with its size and SHA-256; the rows of each output are a record set, typed
column by column: `mlcroissant.Dataset(jsonld="croissant.json").records("train")` reads them where the files lie beside.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core.artifacts import ArtifactManifest
from stages.core.errors import ConfigError, InputError
from stages.core.files import write_atomically
from stages.core.messages import StageResult

FILE = "croissant.json"
CONFORMS = "http://mlcommons.org/croissant/1.0"
PARQUET = "application/x-parquet"
TEXT, MESSAGES = "text", "messages"
_ROW = {"id": (TEXT, "unique in the data set"), "source": (TEXT, "the data set or source that the row is from")}
_LICENSE = {"license": (TEXT, "SPDX expression of the row, or nothing where none is stated")}
COLUMNS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Documents": {
        "id": _ROW["id"],
        "text": (TEXT, "the document"),
        "source": _ROW["source"],
        "url": (TEXT, "where it came from, or its path"),
        **_LICENSE,
    },
    "Conversations": {"id": _ROW["id"], "messages": (MESSAGES, "the turns"), "source": _ROW["source"], **_LICENSE},
    "Preferences": {
        "id": _ROW["id"],
        "prompt": (MESSAGES, "the turns up to the user's last one"),
        "chosen": (MESSAGES, "the answer that is preferred"),
        "rejected": (MESSAGES, "the answer that is not"),
        "source": _ROW["source"],
        **_LICENSE,
    },
    "Problems": {
        "id": _ROW["id"],
        "problem": (TEXT, "what is asked"),
        "answer": (TEXT, "the answer that a verifier compares with"),
        "solution": (TEXT, "a worked solution, or nothing"),
        "source": _ROW["source"],
        **_LICENSE,
    },
}
"""Columns by artifact type: {name: (kind, meaning)} (stages/lib/formats/documents.py, examples.py)."""
PARTS = {"role": "who speaks: system, user or assistant", "content": "what is said"}


def outputs(result: StageResult) -> dict[str, ArtifactManifest]:
    """The outputs of a result that Croissant describes here, by port."""
    return {port: manifest for port, manifest in result.outputs.items() if manifest.type in COLUMNS}


def make(result: StageResult, licenses: Sequence[str]) -> dict[str, Any]:
    """The metadata of a result's data, as JSON values. licenses: SPDX identifiers of what is in it.

    Raises ConfigError where the result holds nothing of the kinds that are described.
    """
    import mlcroissant

    mlc: Any = mlcroissant
    described = outputs(result)
    if not described:
        raise ConfigError(f"node {result.node} makes none of {', '.join(COLUMNS)}: there is nothing to describe")
    distribution = [part for port, manifest in described.items() for part in _distribution(mlc, port, manifest)]
    digests = ", ".join(f"{port} {manifest.digest}" for port, manifest in described.items())
    metadata = mlc.Metadata(
        name=result.node,
        description=(
            f"Made by stage {result.stage}, revision {result.revision}, under the key {result.key}. Content digests:"
            f" {digests}."
        ),
        conforms_to=CONFORMS,
        license=[f"https://spdx.org/licenses/{name}" for name in licenses] or None,
        url=f"urn:moxin:result:{result.key}",
        version=f"{result.revision}.0.0",
        date_published=result.attempt.ended_at[:10],
        cite_as="Moxin: from raw web pages to a fully open LLM family, as one resumable DAG",
        distribution=distribution,
        record_sets=[_records(mlc, port, manifest.type) for port, manifest in described.items()],
    )
    return json.loads(json.dumps(metadata.to_json(), default=str))


def _distribution(mlc: Any, port: str, manifest: ArtifactManifest) -> Iterable[Any]:
    """Every file with its SHA-256, and the set of those that hold the rows."""
    for file in manifest.files:
        yield mlc.FileObject(
            id=f"{port}/{file.path}",
            name=f"{port}/{file.path}",
            content_url=f"{port}/{file.path}",
            content_size=f"{file.size} B",
            encoding_formats=[PARQUET if file.path.endswith(".parquet") else "application/octet-stream"],
            sha256=file.sha256,
        )
    yield mlc.FileSet(
        id=f"{port}-parts", name=f"{port}-parts", encoding_formats=[PARQUET], includes=f"{port}/*.parquet"
    )


def _records(mlc: Any, port: str, type: str) -> Any:
    """The rows of an output, column by column; turns of a conversation have two parts each."""

    def source(column: str, part: str | None = None) -> Any:
        transforms = [mlc.Transform(json_path=part)] if part else None
        return mlc.Source(file_set=f"{port}-parts", extract=mlc.Extract(column=column), transforms=transforms)

    fields: list[Any] = []
    for column, (kind, meaning) in COLUMNS[type].items():
        place = f"{port}/{column}"
        if kind == TEXT:
            fields.append(
                mlc.Field(
                    id=place, name=place, description=meaning, data_types=mlc.DataType.TEXT, source=source(column)
                )
            )
            continue
        turns = [
            mlc.Field(
                id=f"{place}/{part}",
                name=f"{place}/{part}",
                description=what,
                data_types=mlc.DataType.TEXT,
                source=source(column, part),
            )
            for part, what in PARTS.items()
        ]
        fields.append(mlc.Field(id=place, name=place, description=meaning, repeated=True, sub_fields=turns))
    return mlc.RecordSet(id=port, name=port, description=f"{type}, one a row", fields=fields)


def write(folder: Path, result: StageResult, licenses: Sequence[str]) -> Path:
    """Write croissant.json of a result's data into a folder. Raises ConfigError as `make` does."""
    path = folder / FILE
    write_atomically(path, json.dumps(make(result, licenses), indent=1, ensure_ascii=False) + "\n")
    load(path)
    return path


def load(path: Path) -> Any:
    """The data set of a croissant.json, as `mlcroissant.Dataset`. Raises InputError where the library refuses it."""
    import mlcroissant as mlc

    logger = logging.getLogger("absl")  # it warns of what a card need not have: a licence, where none is stated
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return mlc.Dataset(jsonld=str(path))
    except (OSError, ValueError, mlc.ValidationError) as error:
        raise InputError(f"{path} is no Croissant metadata: {str(error).splitlines()[0]}") from error
    finally:
        logger.setLevel(level)
