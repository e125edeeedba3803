"""`stages.lib.formats.documents`: what is written is read back, whatever the text, in bounded pieces and in the same
bytes.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.formats import documents
from stages.lib.formats.documents import DocumentWriter, count, read_batches, read_documents, write_documents
from tests.support.examples import max_examples

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
DOCUMENT = st.fixed_dictionaries({"id": TEXT, "text": TEXT, "source": TEXT, "url": TEXT, "license": TEXT})


def rows(*texts: str) -> list[dict[str, str]]:
    return [{"id": str(n), "text": text, "source": "s", "url": "", "license": ""} for n, text in enumerate(texts)]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@max_examples(60)
@given(st.lists(DOCUMENT, max_size=8))
def test_any_unicode_comes_back(written: list[dict[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = write_documents(Path(folder), written)
        assert list(read_documents(Path(folder))) == written
        assert count(Path(folder)) == writer.documents == len(written)
        assert writer.text_bytes == sum(len(row["text"].encode()) for row in written)


def test_an_empty_corpus_is_a_valid_artifact(tmp_path: Path) -> None:
    write_documents(tmp_path, [])
    assert [p.name for p in tmp_path.iterdir()] == ["part-00000.parquet"]
    assert count(tmp_path) == 0
    assert list(read_documents(tmp_path)) == []
    assert pq.read_schema(tmp_path / "part-00000.parquet").names == documents.SCHEMA.names


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 5000)
    monkeypatch.setattr(documents, "PART_BYTES", 20_000)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_documents(tmp_path / name, rows(*(f"text {n} " * (n % 50) for n in range(300))))
    first = digests(tmp_path / "one")
    assert len(first) > 2
    assert digests(tmp_path / "two") == first


def test_parts_and_row_groups_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 3000)
    monkeypatch.setattr(documents, "PART_BYTES", 9000)
    written = rows(*(f"{n} " * (n % 40) for n in range(400)))
    write_documents(tmp_path, written)
    parts = sorted(tmp_path.glob("part-*.parquet"))
    assert len(parts) > 3
    assert [p.name for p in parts] == [f"part-{n:05d}.parquet" for n in range(len(parts))]
    assert list(read_documents(tmp_path)) == written


def test_a_batch_never_spans_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a batch of 1,024 documents of 50 MB would be 50 GB."""
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 10_000)
    write_documents(tmp_path, rows(*["x" * 3000] * 24))
    sizes = [batch.num_rows for batch in read_batches(tmp_path)]
    assert sum(sizes) == 24
    assert max(sizes) <= 4
    assert sum(b.num_rows for b in read_batches(tmp_path, columns=["id"], rows=2)) == 24
    assert max(b.num_rows for b in read_batches(tmp_path, columns=["id"], rows=2)) == 2


def test_tiny_documents_are_flushed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row weighs something besides its text: a corpus of empty texts must not pile up in memory."""
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 10 * documents.ROW_BYTES)
    with DocumentWriter(tmp_path) as writer:
        for n in range(100):
            writer.add(str(n), "", "s")
            assert len(writer._rows) < 10
    assert count(tmp_path) == 100


def test_a_failed_stage_leaves_no_half_written_group(tmp_path: Path) -> None:
    def broken() -> None:
        with DocumentWriter(tmp_path) as writer:
            writer.add("1", "text", "s")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert list(tmp_path.iterdir()) == []
