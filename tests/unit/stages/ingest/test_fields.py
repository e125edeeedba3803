"""Nested fields of real data sets: paths, lists, and the columns of Parquet that they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.ingest.fields import columns, label, value_at
from stages.ingest.readers import Record, read_jsonl, read_parquet
from stages.ingest.spec import IngestConfig
from stages.lib.formats.sources import RawFile

STACK = {
    "content": "x = 1\n",
    "max_stars_repo_licenses": ["MIT", "Apache-2.0"],
    "max_stars_repo_path": "a.py",
    "lang": "Python",
}
POOL = {
    "text": "A page.",
    "metadata": {"WARC-Target-URI": "https://example.org/a", "Content-Length": "7"},
    "warcinfo": "software: x",
}
SLIM = {"text": "A text.", "meta": {"redpajama_set_name": "RedPajamaC4"}}
"""Rows of the Stack, of DCLM's pool and of SlimPajama, with the columns of their cards that are read here."""


@pytest.mark.parametrize(
    ("row", "path", "value"),
    [
        (SLIM, "meta.redpajama_set_name", "RedPajamaC4"),
        (POOL, "metadata.WARC-Target-URI", "https://example.org/a"),
        (POOL, "metadata.none", None),
        (POOL, "text.none", None),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 1),
        ({"a": {"b": {"c": 3}}}, "a.b.c", 3),
    ],
)
def test_a_path_is_followed_into_tables(row: dict[str, Any], path: str, value: Any) -> None:
    assert value_at(row, path) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["MIT", "Apache-2.0", "MIT"], "MIT AND Apache-2.0"),
        ([], ""),
        (None, ""),
        ("a\ud800", "a?"),
        ([None, "MIT"], "MIT"),
    ],
)
def test_what_a_list_holds_holds_together(value: Any, text: str) -> None:
    assert label(value) == text


def test_only_the_columns_that_are_asked_for_are_read() -> None:
    assert columns(["text", "meta.redpajama_set_name", "url", "text"], {"text", "meta"}) == [
        "text",
        "meta.redpajama_set_name",
    ]


CASES = [
    (
        STACK,
        IngestConfig(text_field="content", license_field="max_stars_repo_licenses", url_field="max_stars_repo_path"),
        Record("x = 1\n", "a.py", "MIT AND Apache-2.0"),
    ),
    (POOL, IngestConfig(url_field="metadata.WARC-Target-URI"), Record("A page.", "https://example.org/a")),
    (SLIM, IngestConfig(source_field="meta.redpajama_set_name"), Record("A text.", part="RedPajamaC4")),
]


@pytest.mark.parametrize(("row", "config", "record"), CASES)
def test_the_fields_of_real_data_sets_are_kept_by_both_readers(
    tmp_path: Path, row: dict[str, Any], config: IngestConfig, record: Record
) -> None:

    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert list(read_jsonl(RawFile(uri="a.jsonl", format="jsonl", source="s"), tmp_path, config)) == [record]
    assert list(read_parquet(RawFile(uri="a.parquet", format="parquet", source="s"), tmp_path, config)) == [record]
