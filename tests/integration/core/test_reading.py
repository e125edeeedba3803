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
from stages.core.errors import InfraError, InputError
from stages.core.ledger import Ledger
from stages.core.store import Store
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


def test_bytes_that_make_no_sense_are_blamed_on_whom_it_may_concern(
    entry: FileEntry, ledger: Ledger, tmp_path: Path
) -> None:
    """A reader of small ranges finds it; the store is asked before anybody says that the data is bad."""
    with (
        pytest.raises(InfraError, match=r"files/part is whole in the store, but came here .* \(Invalid: no magic\)"),
        reading.sense(entry, pa.ArrowException),
    ):
        raise pa.ArrowInvalid("Invalid:\n no magic")
    ledger.store.put("files/part", b"other bytes")
    with (
        pytest.raises(Damaged, match="files/part is damaged: SHA-256") as caught,
        reading.sense(entry, pa.ArrowException),
    ):
        raise pa.ArrowInvalid("no magic")
    assert caught.value.key == "files/part"
    ledger.store.delete(["files/part"])
    assert "404" in str(reading.unreadable(entry, "x"))
    local = entry.model_copy(update={"object": str(tmp_path / "x")})
    assert isinstance(reading.unreadable(local, "x"), InputError)
    with pytest.raises(KeyError), reading.sense(entry, pa.ArrowException):
        raise KeyError("of the consumer's own")
    with pytest.raises(InfraError, match="away"), reading.sense(entry, Exception):
        raise InfraError("the store is away")


def test_a_shard_of_a_file_whose_bytes_came_wrong_is_no_bad_data(
    entry: FileEntry, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.lib.formats.corpus import Shard, groups_of, read_shard

    real = Store.get_range
    monkeypatch.setattr(Store, "get_range", lambda *a: bytes(byte ^ 1 for byte in real(*a)))
    with pytest.raises(InfraError, match="is whole in the store"):
        groups_of(entry)
    with pytest.raises(InfraError, match="is whole in the store"):
        list(read_shard(Shard(entry.value(), 0, 1, 0, 1000)))
    monkeypatch.undo()
    reading.share(ledger.store.address, "test")
    assert sum(batch.num_rows for batch in read_shard(Shard(entry.value(), 0, 1, 0, 1000))) == 1000
