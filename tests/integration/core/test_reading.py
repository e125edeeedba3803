"""Stored files opened by ranges and whole, in this process and in others; a real store."""

from __future__ import annotations

import io
import multiprocessing
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core import reading
from stages.core.artifacts import FileEntry
from stages.core.errors import InfraError
from stages.core.ledger import Ledger
from stages.core.store_errors import Damaged


@pytest.fixture
def entry(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileEntry:
    """A Parquet file of four row groups in the store."""
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path / "scratch"))
    for name in (reading.STORE, reading.ATTEMPT):
        monkeypatch.setenv(name, "")
    reading.share(ledger.store.address, "test")
    file = tmp_path / "part-00000.parquet"
    table = pa.table({"id": [f"{n:06d}" for n in range(4000)], "text": [os.urandom(300).hex() for _ in range(4000)]})
    pq.write_table(table, file, row_group_size=1000)
    size, sha256 = ledger.store.upload("files/part", file)
    return FileEntry(path="a/part-00000.parquet", size=size, sha256=sha256, object="files/part")


def test_a_file_is_read_by_ranges_and_whole(entry: FileEntry, tmp_path: Path) -> None:
    local = (tmp_path / "part-00000.parquet").read_bytes()
    with reading.open_file(entry) as stream:
        assert stream.read() == local
        for start in (0, 7, len(local) - 9):
            stream.seek(start)
            assert stream.read(100) == local[start : start + 100]
        assert stream.seek(-4, io.SEEK_END) == len(local) - 4
        assert stream.read() == b"PAR1"
    with reading.open_file(entry) as stream, pq.ParquetFile(stream) as parquet:
        assert parquet.read_row_group(2, columns=["id"]).column("id")[0].as_py() == "002000"
    with reading.local_file(entry) as path:
        assert path.name == "part-00000.parquet"
        assert path.read_bytes() == local
    assert not path.exists()


def test_a_value_travels_to_another_process(entry: FileEntry) -> None:
    assert FileEntry.model_validate(entry.value()) == entry
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_size, (entry.value(),)) == entry.size


def _size(value: dict[str, object]) -> int:
    with reading.open_file(FileEntry.model_validate(value)) as stream:
        return len(stream.read())


def test_a_local_file_is_read_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"here")
    entry = FileEntry(path="x", size=4, sha256="0" * 64, object=str(tmp_path / "x"))
    with reading.open_file(entry) as stream, reading.local_file(entry) as path:
        assert (stream.read(), path) == (b"here", tmp_path / "x")


def test_a_lost_or_cut_file_is_damage_and_a_missing_address_says_so(
    entry: FileEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reading.open_file(entry.model_copy(update={"object": "files/none"})) as stream, pytest.raises(Damaged):
        stream.read(1)
    with (
        reading.open_file(entry.model_copy(update={"size": entry.size + 5})) as stream,
        pytest.raises(Damaged, match="ends at byte"),
    ):
        stream.read()
    monkeypatch.delenv(reading.STORE)
    with pytest.raises(InfraError, match="MOXIN_STORE is not set"):
        reading.open_file(entry)
