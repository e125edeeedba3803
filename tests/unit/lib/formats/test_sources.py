"""`stages.lib.formats.sources`: the listing of raw files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.core.errors import InputError
from stages.lib.formats.sources import LISTING, Format, RawFile, read_listing, write_listing
from tests.support.examples import max_examples

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
FILE = st.builds(RawFile, uri=NAME, format=st.sampled_from(get_args(Format)), source=NAME, license=TEXT)


@max_examples(80)
@given(st.lists(FILE, max_size=6))
def test_any_listing_comes_back(files: list[RawFile]) -> None:
    """Also names that hold line separators of Unicode, which `str.splitlines` would cut at."""
    with tempfile.TemporaryDirectory() as folder:
        write_listing(Path(folder), files)
        assert read_listing(Path(folder)) == files


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "listing.jsonl, line 2 is not a raw file: Expecting value"),
        ('{"uri": "a", "format": "xml", "source": "s"}', "listing.jsonl, line 2 is not a raw file: 1 validation error"),
        ('{"uri": "a", "format": "jsonl"}', "listing.jsonl, line 2 is not a raw file: 1 validation error"),
        ("", "listing.jsonl, line 2 is not a raw file: Expecting value"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    good = RawFile(uri="a", format="jsonl", source="s").model_dump_json()
    (tmp_path / LISTING).write_text(f"{good}\n{line}\n{good}\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_listing(tmp_path)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_no_listing_and_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"listing\.jsonl cannot be read"):
        read_listing(tmp_path)
    (tmp_path / LISTING).write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"listing\.jsonl cannot be read"):
        read_listing(tmp_path)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError):
        RawFile.model_validate({"uri": "a", "format": "code", "source": "s", "licence": "MIT"})
