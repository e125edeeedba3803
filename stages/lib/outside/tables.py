"""Rows that others made, in the Parquet parts of this pipeline's own schemas: every row is read once and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import InputError
from stages.lib.data.licenses import licenses
from stages.lib.formats import documents, examples
from stages.lib.outside.prepared import Prepared


@dataclass(frozen=True)
class Table:
    """Columns of an artifact type, and why a row of it cannot be used."""

    schema: pa.Schema
    fault: Callable[[Any], str | None] = lambda row: None


TABLES = {
    "Documents": Table(documents.SCHEMA),
    "Conversations": Table(examples.CONVERSATIONS, examples.conversation_fault),
    "Preferences": Table(examples.PREFERENCES, examples.preference_fault),
    "Problems": Table(examples.PROBLEMS, examples.problem_fault),
}
"""By artifact type."""


def prepare_rows(folder: Path, kind: str) -> Prepared:
    """The parts of a folder, which become an artifact of type `kind`. Raises InputError with the first row that is
    wrong.
    """
    table = TABLES[kind]
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise InputError(f"there is no part-*.parquet: {kind} are {', '.join(table.schema.names)} in Parquet parts")
    seen, stated, size = set[str](), set[str](), 0
    for part in parts:
        size += _read(part, table, seen, stated)
    if not seen:
        raise InputError("its parts hold no row")
    counted = "documents" if kind == "Documents" else "rows"
    return Prepared(
        files={part.name: part for part in parts},
        meta={counted: len(seen), "text_bytes": size},
        license=licenses(stated),
    )


def _read(part: Path, table: Table, seen: set[str], stated: set[str]) -> int:
    """Check the rows of a part; bytes of their text. Adds to `seen` (their ids) and `stated` (their licences)."""
    size = number = 0
    try:
        with pq.ParquetFile(part) as file:
            if not file.schema_arrow.equals(table.schema):
                raise InputError(f"{part.name} has other columns: {_difference(file.schema_arrow, table.schema)}")
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    fault = "another row has its id" if row["id"] in seen else table.fault(row)
                    if fault:
                        raise InputError(f"{part.name}, row {number} ({row['id'][:60]!r}): {fault}")
                    seen.add(row["id"])
                    stated.add(row["license"])
                    size += sum(len(str(value).encode("utf-8", "replace")) for value in row.values())
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{part.name} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return size


def _difference(schema: pa.Schema, wished: pa.Schema) -> str:
    """The first column that is not as it should be."""
    for field in wished:
        if field.name not in schema.names:
            return f"there is no {field.name}"
        if (there := schema.field(field.name)) != field:
            unset = " that may be unset" if there.nullable and not field.nullable else ""
            return f"{field.name} is {there.type}{unset}, not {field.type}"
    surplus = [name for name in schema.names if name not in wished.names]
    return f"{surplus[0]} is none of {', '.join(wished.names)}" if surplus else "they stand in another order"
