"""Fingerprints of evaluation data: the rows decide, not how they are stored."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest

from stages.core.errors import InputError
from stages.lib.formats.suites import (
    DataSet,
    Suite,
    data_set_sha256,
    read_suite,
    split_fingerprint,
    split_fingerprints,
    write_data_set,
    write_suite,
)
from tests.support.hostile_names import ABSOLUTE, HOSTILE, PARENT

ROWS = [{"question": f"Was {n}? é 数学", "choices": ["a", "b"], "answer": n % 2} for n in range(2500)]


def test_the_fingerprint_is_that_of_the_canonical_rows() -> None:
    """By hand: one line of JSON a row, keys in order."""
    rows = [{"b": 1, "a": "é"}, {"b": None, "a": ["x", {"z": 0.5, "y": True}]}]
    text = '{"a":"é","b":1}\n{"a":["x",{"y":true,"z":0.5}],"b":null}\n'
    assert split_fingerprint(rows) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "options", [{"row_group_size": 7}, {"compression": "none"}, {"version": "1.0", "use_dictionary": False}]
)
def test_the_writer_and_its_settings_change_nothing(options: dict[str, object]) -> None:
    table = pa.Table.from_pylist(ROWS)
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    read = pq.read_table(out).select(["answer", "question", "choices"])
    assert split_fingerprint(read) == split_fingerprint(table) == split_fingerprint(ROWS)


def test_the_width_of_a_type_and_the_file_format_change_nothing(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    large = table.cast(
        pa.schema([("question", pa.large_string()), ("choices", pa.large_list(pa.string())), ("answer", pa.int16())])
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    from_json = pyarrow.json.read_json(tmp_path / "rows.jsonl")
    assert split_fingerprint(large) == split_fingerprint(from_json) == split_fingerprint(table)


def test_another_value_another_order_and_another_column_change_it() -> None:
    whole = split_fingerprint(ROWS)
    changed = [ROWS[0] | {"answer": 1}, *ROWS[1:]]
    assert len({whole, *map(split_fingerprint, (changed, ROWS[::-1], ROWS[1:], [r | {"more": 0} for r in ROWS]))}) == 5


def test_values_that_json_has_no_form_for() -> None:
    rows = [{"image": b"\x00\xff", "day": datetime.date(2026, 1, 2)}]
    assert split_fingerprint(rows) == split_fingerprint(pa.Table.from_pylist(rows))
    assert split_fingerprint(rows) != split_fingerprint([{"image": b"\x00", "day": datetime.date(2026, 1, 2)}])


def test_the_listing_holds_the_fingerprints_and_an_older_one_is_read(tmp_path: Path) -> None:
    configs = {"main": {"test": pa.Table.from_pylist(ROWS), "train": pa.Table.from_pylist(ROWS[:3])}}
    rows, marks = write_data_set(tmp_path, "a/b", configs), split_fingerprints(configs)
    write_suite(
        tmp_path,
        Suite(data_sets=(DataSet(id="a/b", origin="hub", rows=rows, fingerprint=marks),), train_test_overlap=0),
    )
    data_set = read_suite(tmp_path).data_sets[0]
    assert data_set.fingerprint == {"main": {"test": split_fingerprint(ROWS), "train": split_fingerprint(ROWS[:3])}}
    assert data_set.sha256 == data_set_sha256({"main": dict(reversed(marks["main"].items()))})
    assert DataSet(id="a/b", origin="hub", rows=rows).fingerprint == {}


def test_a_configuration_that_is_not_named_is_the_default_or_the_only_one() -> None:
    def names(*configs: str) -> str | None:
        return DataSet(id="a/b", origin="hub", rows={config: {"test": 1} for config in configs}).config_name(None)

    assert (names("default", "x"), names("openai_humaneval"), names("x", "y")) == ("default", "openai_humaneval", None)
    assert DataSet(id="a/b", origin="hub", rows={"x": {"test": 1}}).config_name("y") is None


@pytest.mark.parametrize("name", HOSTILE)
def test_neither_a_data_set_nor_what_its_owner_calls_its_parts_leads_out(tmp_path: Path, name: str) -> None:
    rows = pa.Table.from_pylist([{"a": 1}])
    root = tmp_path / "suite"
    with pytest.raises(InputError, match="is no path inside a folder"):
        write_data_set(root, name, {"default": {"test": rows}})
    with pytest.raises(InputError, match="is no path inside a folder"):
        write_data_set(root, "owner/name", {name: {"test": rows}})
    with contextlib.suppress(InputError):  # what ends in .parquet may be a name after all: '..' is '...parquet'
        write_data_set(root, "owner/name", {"default": {name: rows}})
    below = root / "owner" / "name"
    assert all(path.is_relative_to(below) for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", [*ABSOLUTE, *PARENT])
def test_a_listing_that_names_a_folder_outside_is_refused(tmp_path: Path, name: str) -> None:
    write_suite(tmp_path, Suite(data_sets=(DataSet(id=name, origin="hub", rows={}),)))
    with pytest.raises(InputError, match="names a folder outside of it"):
        read_suite(tmp_path)
