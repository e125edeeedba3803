"""Rows of others: every one is read, and the first that cannot be learned from is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import InputError
from stages.lib.formats.examples import CONVERSATIONS, ConversationWriter, assistant, user
from stages.lib.outside.tables import prepare_rows


def _write(folder: Path, *questions: str, **changes: str) -> Path:
    with ConversationWriter(folder) as writer:
        for number, question in enumerate(questions):
            row = {"id": str(number), "messages": [user(question), assistant("a")], "source": "s", "license": "MIT"}
            writer.add({**row, **changes})  # type: ignore[typeddict-item]
    return folder


def test_rows_are_counted_and_their_licences_told(tmp_path: Path) -> None:
    prepared = prepare_rows(_write(tmp_path, "one?", "two?"), "Conversations")
    assert list(prepared.files) == ["part-00000.parquet"]
    assert (prepared.meta["rows"], prepared.license, prepared.facets) == (2, "MIT", {})


def test_a_row_that_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no part-\*\.parquet"):
        prepare_rows(tmp_path, "Problems")
    with pytest.raises(InputError, match=r"row 1 \('1'\): empty content"):
        prepare_rows(_write(tmp_path, "one?", " "), "Conversations")
    with pytest.raises(InputError, match=r"row 1 \('x'\): another row has its id"):
        prepare_rows(_write(tmp_path, "one?", "two?", id="x"), "Conversations")
    with pytest.raises(InputError, match="there is no problem"):
        prepare_rows(tmp_path, "Problems")
    fields = [field.with_nullable(True) if field.name == "license" else field for field in CONVERSATIONS]
    pq.write_table(pa.schema(fields).empty_table(), tmp_path / "part-00000.parquet")
    with pytest.raises(InputError, match="license is string that may be unset, not string"):
        prepare_rows(tmp_path, "Conversations")
    pq.write_table(CONVERSATIONS.empty_table(), tmp_path / "part-00000.parquet")
    with pytest.raises(InputError, match="hold no row"):
        prepare_rows(tmp_path, "Conversations")
