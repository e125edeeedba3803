"""Files read by ranges: how many requests that takes, what is verified, and what a reader is told; a real store."""

from __future__ import annotations

import gzip
import io
import os
import random
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core import range_file
from stages.core.artifacts import FileEntry
from stages.core.errors import InfraError
from stages.core.range_file import RangeFile, StoredFile
from stages.core.store import Store
from stages.core.store_errors import Damaged

BLOCK, NEAR = 1 << 16, 1 << 12
DATA = random.Random(7).randbytes(9 * BLOCK + 777)


class Counted(Store):
    """Remembers the ranges that it was asked for; may give other bytes."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked: list[tuple[int, int]] = []
        self.spoil = 0

    def get_range(self, key: str, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        data = super().get_range(key, start, end)
        if self.spoil > 0:
            self.spoil -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        return data


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with smaller numbers."""
    monkeypatch.setattr(range_file, "BLOCK", BLOCK)
    monkeypatch.setattr(range_file, "NEAR", NEAR)
    monkeypatch.setattr(range_file, "MEMORY", 16 * BLOCK)
    monkeypatch.setattr(range_file, "BUFFER", NEAR // 2)


@pytest.fixture
def counted(store: Store) -> Counted:
    return Counted(store.address, store._client)


@pytest.fixture
def entry(store: Store) -> FileEntry:
    return put(store, DATA)


def put(store: Store, data: bytes, blocks: bool = True) -> FileEntry:
    """A stored file; its bytes were never hashed whole, which a range does not ask for."""
    store.put("file", data)
    crcs = [zlib.crc32(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
    text = "".join(f"{crc:08x}" for crc in crcs) if blocks else ""
    return FileEntry(path="name", size=len(data), sha256="0" * 64, object="file", blocks=text)


@pytest.fixture
def opened(counted: Counted, entry: FileEntry) -> Iterator[StoredFile]:
    with StoredFile(counted, entry) as stream:
        yield stream


def test_it_reads_as_a_file_does(opened: StoredFile) -> None:
    local, chosen = io.BytesIO(DATA), random.Random(1)
    for _ in range(300):
        if chosen.random() < 0.4:
            at = chosen.randrange(len(DATA) + 10)
            assert opened.seek(at) == local.seek(at)
        size = int(2 ** chosen.uniform(0, 18))
        assert opened.read(size) == local.read(size)
        assert opened.tell() == local.tell()
    opened.seek(-5, io.SEEK_END)
    assert opened.read() == DATA[-5:]
    opened.seek(0)
    assert opened.read() == DATA
    assert opened.read() == b""
    opened.seek(0)
    local.seek(0)
    assert opened.readlines() == local.readlines()


def test_a_file_that_is_read_through_takes_about_a_request_a_block(opened: StoredFile, counted: Counted) -> None:
    found = b"".join(iter(lambda: opened.read(1000), b""))
    assert found == DATA
    assert len(counted.asked) <= 10 + 6
    assert sum(end - start for start, end in counted.asked) == len(DATA), "no byte twice"


def test_a_large_read_takes_a_request_a_block_and_its_neighbour_none(opened: StoredFile, counted: Counted) -> None:
    opened.seek(BLOCK + 100)
    assert opened.read(4 * BLOCK) == DATA[BLOCK + 100 : 5 * BLOCK + 100]
    assert opened.read(50) == DATA[5 * BLOCK + 100 : 5 * BLOCK + 150]
    assert sorted(counted.asked)[:5] == [(n * BLOCK, (n + 1) * BLOCK) for n in range(1, 6)]
    assert len(counted.asked) <= 6, "one more may be read ahead"


def test_a_small_read_stays_small(opened: StoredFile, counted: Counted) -> None:
    for at in (5 * BLOCK + 9, 2 * BLOCK + 9, 7 * BLOCK + 9):
        opened.seek(at)
        assert opened.read(10) == DATA[at : at + 10]
    assert len(counted.asked) == 3
    assert all(end - start == NEAR for start, end in counted.asked)


def test_with_many_files_open_each_holds_little(counted: Counted, entry: FileEntry) -> None:
    files = [StoredFile(counted, entry) for _ in range(100)]
    assert b"".join(iter(lambda: files[0].read(500), b"")) == DATA
    assert max(end - start for start, end in counted.asked) <= 16 * BLOCK // 100
    for stream in files:
        stream.close()
    counted.asked.clear()
    with StoredFile(counted, entry) as stream:
        stream.read(1 << 18)
    assert max(end - start for start, end in counted.asked) == BLOCK, "closed ones hold nothing"


@pytest.mark.parametrize("step", [700, 3 * BLOCK], ids=["small reads", "large reads"])
def test_a_block_that_came_wrong_never_reaches_the_end_of_a_reader(
    counted: Counted, entry: FileEntry, step: int
) -> None:
    """In large reads it is fetched once more; read in small pieces, the reader is told at the block's end."""
    counted.spoil = 1
    with StoredFile(counted, entry) as stream:
        if step < BLOCK:
            with pytest.raises(InfraError, match=r"bytes of s3://.*/file changed on their way"):
                list(iter(lambda: stream.read(step), b""))
        else:
            assert b"".join(iter(lambda: stream.read(step), b"")) == DATA


@pytest.mark.parametrize("step", [700, 3 * BLOCK], ids=["small reads", "large reads"])
def test_a_block_that_is_wrong_in_the_store_is_damage(
    store: Store, counted: Counted, entry: FileEntry, step: int
) -> None:
    at = 2 * BLOCK + 5
    store.put("file", DATA[:at] + bytes([DATA[at] ^ 4]) + DATA[at + 1 :])
    with (
        StoredFile(counted, entry) as stream,
        pytest.raises(Damaged, match=r"s3://.*/file is damaged: bytes 131072 to 196608 of name have CRC32") as caught,
    ):
        list(iter(lambda: stream.read(step), b""))
    assert caught.value.key == "file"


def test_a_lost_and_a_short_object_are_damage(store: Store, entry: FileEntry) -> None:
    with StoredFile(store, entry.model_copy(update={"object": "none"})) as stream, pytest.raises(Damaged):
        stream.read(1)
    longer = entry.model_copy(update={"size": entry.size + BLOCK, "blocks": ""})
    with StoredFile(store, longer) as stream, pytest.raises(Damaged, match="ends"):
        stream.read()


def test_parquet_takes_few_requests_and_only_its_columns(store: Store, counted: Counted, tmp_path: Path) -> None:
    text = [random.Random(n).randbytes(200).hex() for n in range(6000)]
    table = pa.table({"id": list(range(6000)), "text": text, "other": text})
    pq.write_table(table, tmp_path / "file", row_group_size=2000, use_dictionary=False, compression="none")
    entry = put(store, (tmp_path / "file").read_bytes())
    with StoredFile(counted, entry) as stream, pq.ParquetFile(stream) as parquet:
        batches = parquet.iter_batches(row_groups=[1], columns=["text"], use_threads=False)
        assert pa.Table.from_batches(batches).column("text").to_pylist() == text[2000:4000]
    taken = sum(end - start for start, end in counted.asked)
    assert taken < 800_000 + 4 * BLOCK, "the column's 0.8 MB and two blocks at its ends"
    assert len(counted.asked) <= 800_000 // BLOCK + 6


def test_an_error_of_the_store_comes_through_the_readers(counted: Counted, store: Store, tmp_path: Path) -> None:
    """Through Arrow, gzip and a text layer: never as damage of the data."""

    class Failing(Counted):
        def get_range(self, key: str, start: int, end: int) -> bytes:
            if start > 2 * NEAR:
                raise InfraError("the store is away")
            return super().get_range(key, start, end)

    failing = Failing(store.address, store._client)
    data = gzip.compress(random.Random(2).randbytes(3 * BLOCK).hex().encode())
    with (
        StoredFile(failing, put(store, data)) as stream,
        pytest.raises(InfraError, match="is away"),
        gzip.open(stream) as unpacked,
    ):
        unpacked.read()
    with StoredFile(failing, put(store, b"PAR1" * BLOCK)) as stream, pytest.raises(InfraError, match="is away"):
        pq.ParquetFile(stream)
    with (
        StoredFile(failing, put(store, b"line\n" * BLOCK)) as stream,
        pytest.raises(InfraError, match="is away"),
        io.TextIOWrapper(stream) as lines,
    ):
        list(lines)


def test_many_threads_read_one_file(counted: Counted, entry: FileEntry) -> None:
    with RangeFile(counted, entry) as shared, ThreadPoolExecutor(8) as pool:
        places = [random.Random(n).randrange(len(DATA)) for n in range(64)]
        for at, data in zip(places, pool.map(lambda at: shared.read_at(at, 3000), places), strict=True):
            assert data == DATA[at : at + 3000]


def test_a_closed_file_says_so_and_reads_nothing(opened: StoredFile) -> None:
    opened.close()
    with pytest.raises(ValueError, match="closed file"):
        opened.read(5)


def test_a_forked_process_reads_with_connections_of_its_own(entry: FileEntry, store: Store) -> None:
    from stages.core import reading

    os.environ[reading.STORE] = store.address.model_dump_json()
    try:
        with reading.open_file(entry) as stream:
            assert stream.read() == DATA
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with reading.open_file(entry) as stream:
                    status = 0 if stream.read() == DATA else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        del os.environ[reading.STORE]
    assert threading.active_count() >= 1
