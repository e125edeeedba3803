"""The paper's printed tables (infra/paper_tables.json), with averages computed anew: two printed ones are wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from flows.data_files import DATA
from stages.core.errors import ConfigError

FILE = DATA / "infra" / "paper_tables.json"
ROUNDING = 0.0051
"""A printed average may differ from the exact one by half of its last digit (0.005); the rest is for binary fractions.
"""

ORIGINAL, ENHANCED = "Moxin-7B-Original", "Moxin-7B-Enhanced"


@dataclass(frozen=True)
class Row:
    """One model's scores, in per cent."""

    model: str
    scores: Mapping[str, float]
    printed: float | None
    """The average as the paper prints it; None where it prints none."""

    @property
    def average(self) -> float:
        """The average of the printed scores, computed anew."""
        return sum(self.scores.values()) / len(self.scores)

    @property
    def wrong(self) -> bool:
        """Whether the printed average is not that of the printed scores."""
        return self.printed is not None and abs(self.printed - self.average) > ROUNDING


@dataclass(frozen=True)
class Table:
    """One of the paper's tables of scores."""

    number: int
    title: str
    columns: tuple[str, ...]
    shots: Mapping[str, int]
    rows: tuple[Row, ...]

    def row(self, model: str) -> Row:
        """A model's row. Raises KeyError."""
        return {row.model: row for row in self.rows}[model]


@cache
def tables(file: Path = FILE) -> Mapping[str, Table]:
    """All tables by name ('table_2' ..). Raises ConfigError when the file is not what it should be."""
    try:
        raw_tables = json.loads(file.read_text(encoding="utf-8"))["tables"]
        return {name: _table(value) for name, value in raw_tables.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file.name} does not hold the paper's tables: {type(error).__name__}: {error}") from error


def _table(value: Mapping[str, object]) -> Table:
    columns = tuple(str(name) for name in _list(value["columns"]))
    rows: list[Row] = []
    for row in _list(value["rows"]):
        scores = {name: float(row["scores"][name]) for name in columns if row["scores"].get(name) is not None}
        if not scores:
            raise ValueError(f"row {row['model']} has no score")
        printed = row.get("average_printed")
        rows.append(Row(str(row["model"]), scores, None if printed is None else float(printed)))
    given: object = value.get("num_fewshot") or None
    if given is not None and not isinstance(given, dict):
        raise TypeError("num_fewshot is no table")
    shots = cast("dict[str, Any]", given or {})
    return Table(
        int(str(value["table"])), str(value["title"]), columns, {k: int(v) for k, v in shots.items()}, tuple(rows)
    )


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("expected a list")
    return cast("list[Any]", value)


def wrong_averages() -> list[tuple[int, Row]]:
    """Table number and row of every average that the paper printed wrongly."""
    return [(table.number, row) for table in tables().values() for row in table.rows if row.wrong]
