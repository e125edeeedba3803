"""The paper's printed tables, and their averages computed anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import paper
from stages.core.errors import ConfigError


def test_exactly_two_printed_averages_are_wrong() -> None:
    found = [(number, row.model, row.printed, round(row.average, 2)) for number, row in paper.wrong_averages()]
    assert found == [(3, "Yi-1.5-9B", 71.48, 71.45), (6, "Moxin-7B-II", 54.42, 54.30)]


def test_tables_2_to_8_are_there_with_their_columns() -> None:
    found = paper.tables()
    assert sorted(table.number for table in found.values()) == [2, 3, 4, 5, 6, 7, 8]
    assert all(set(row.scores) <= set(table.columns) for table in found.values() for row in table.rows)
    assert all(0 < score < 100 for table in found.values() for row in table.rows for score in row.scores.values())


@pytest.mark.parametrize(
    ("name", "model", "scores", "average"),
    [
        ("table_2", paper.ORIGINAL, [72.06, 66.31, 78.07, 71.47, 48.15], 67.21),
        ("table_2", paper.ENHANCED, [80.03, 75.17, 82.24, 81.12, 58.64], 75.44),
        ("table_3", paper.ORIGINAL, [53.75, 75.46, 59.43, 70.32], 64.74),
        ("table_3", paper.ENHANCED, [59.47, 83.08, 60.97, 78.69], 70.55),
    ],
)
def test_the_rows_of_the_ablation(name: str, model: str, scores: list[float], average: float) -> None:
    table = paper.tables()[name]
    row = table.row(model)
    assert [row.scores[column] for column in table.columns] == scores
    assert row.printed == average
    assert not row.wrong


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=10).map(lambda values: [value / 100 for value in values]))
def test_an_average_rounded_to_two_digits_is_right_and_one_further_off_is_wrong(scores: list[float]) -> None:
    exact = sum(scores) / len(scores)
    rows = [paper.Row("m", dict(enumerate(scores)), round(exact, 2) + off) for off in (0.0, 0.02, -0.02)]  # type: ignore[arg-type]
    assert [row.wrong for row in rows] == [False, True, True]


def test_a_row_without_a_printed_average_is_not_wrong() -> None:
    assert not paper.Row("m", {"a": 1.0}, None).wrong


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"tables": []}',
        '{"tables": {"t": {}}}',
        '{"tables": {"t": {"table": 1, "title": "", "columns": ["a"], "rows": [{"model": "m", "scores": {}}]}}}',
    ],
)
def test_a_damaged_file_is_one_clear_error(text: str, tmp_path: Path) -> None:
    file = tmp_path / "tables.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"tables\.json does not hold the paper's tables"):
        paper.tables(file)
    with pytest.raises(ConfigError):
        paper.tables(tmp_path / "absent.json")


def test_the_file_keeps_what_it_was_copied_from() -> None:
    found = json.loads(paper.FILE.read_text(encoding="utf-8"))
    assert "2412.06845" in found["source"]
