"""`stages.lib.formats.shards`: windows on disk come back as they went in, and damage is named."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.core import reading
from stages.core.artifacts import FileEntry
from stages.core.errors import InputError
from stages.core.reading import open_file
from stages.lib.formats import shards as module
from stages.lib.formats.shards import INDEX, ShardWriter, dtype_for
from tests.support.examples import max_examples
from tests.support.token_shards import opened

EOS = 2


@st.composite
def window_batches(draw: st.DrawFn) -> tuple[int, list[np.ndarray]]:
    vocab_size = draw(st.sampled_from([3, 300, 65_536, 65_537, 200_000]))
    length = draw(st.integers(1, 9))
    shapes = st.tuples(st.integers(0, 7), st.just(length))
    batch = shapes.flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, vocab_size - 1)))
    return vocab_size, draw(st.lists(batch, min_size=1, max_size=4))


def write(folder: Path, vocab_size: int, batches: list[np.ndarray], rows_per_shard: int = 1 << 16) -> None:
    with ShardWriter(folder, batches[0].shape[1], vocab_size, EOS, "digest", rows_per_shard) as writer:
        for batch in batches:
            writer.add(batch)


@max_examples(80)
@given(window_batches(), st.integers(1, 5))
def test_any_windows_come_back(case: tuple[int, list[np.ndarray]], rows_per_shard: int) -> None:
    vocab_size, batches = case
    wanted = np.concatenate(batches)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), vocab_size, batches, rows_per_shard)
        shards = opened(Path(folder))
        assert len(shards) == len(wanted)
        assert shards.index["dtype"] == dtype_for(vocab_size)
        assert all(rows <= rows_per_shard for rows in shards.index["rows"])
        rows = np.arange(len(wanted))[::-1]
        assert np.array_equal(shards.windows(rows), wanted[::-1])
        assert shards.windows(rows).dtype == dtype_for(vocab_size)


def naive_document_ids(window: list[int]) -> list[int]:
    """Count the ends before each token."""
    ids, current = [], 0
    for token in window:
        ids.append(current)
        if token == EOS:
            current += 1
    return ids


@max_examples(80)
@given(arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.integers(0, 4)))
def test_document_ids_count_the_ends_before_each_token(windows: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), 5, [windows])
        shards = opened(Path(folder))
        documents = shards.document_ids(shards.windows(range(len(windows))))
    assert documents.dtype == np.int32
    assert documents.tolist() == [naive_document_ids(window.tolist()) for window in windows]


def test_ids_outside_the_vocabulary_never_wrap(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 2, 300, EOS, "d") as writer:
        with pytest.raises(ValueError, match="ids run from 5 to 65540, the vocabulary has 300"):
            writer.add(np.array([[5, 65_540]]))
        with pytest.raises(ValueError, match="ids run from -1"):
            writer.add(np.array([[5, -1]]))
        with pytest.raises(ValueError, match=r"windows must be \[n, 2\]"):
            writer.add(np.array([[5, 6, 7]]))
        writer.add(np.array([[5, 6]]))
    assert opened(tmp_path).windows([0]).tolist() == [[5, 6]]


def test_a_window_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, 10, [np.arange(6).reshape(3, 2)])
    shards = opened(tmp_path)
    for row in (-1, 3):
        with pytest.raises(IndexError, match=f"windows {row} to {row} of 3"):
            shards.windows([row])


def test_a_failed_writer_leaves_no_index(tmp_path: Path) -> None:
    def broken() -> None:
        with ShardWriter(tmp_path, 2, 10, EOS, "d") as writer:
            writer.add(np.array([[1, 2]]))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    with pytest.raises(InputError, match=r"index\.json is missing"):
        opened(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    write(tmp_path, 10, [np.arange(6).reshape(3, 2)], rows_per_shard=2)
    index = json.loads((tmp_path / INDEX).read_text())
    part = tmp_path / "shard-00001.bin"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(
        InputError, match=r"shard-00001\.bin has 7 bytes, but index\.json says 8: the shards are damaged"
    ):
        opened(tmp_path)
    part.unlink()
    with pytest.raises(InputError, match=r"shard-00001\.bin has no bytes"):
        opened(tmp_path)
    for content, says in (
        ("{", "cannot be read"),
        ("[]", "version None, this code reads 2"),
        (json.dumps(index | {"version": 9}), "version 9, this code reads 2"),
        (json.dumps({"version": 2}), "incomplete or damaged: 'sequence_length'"),
        (json.dumps(index | {"dtype": "nonsense"}), "incomplete or damaged"),
    ):
        (tmp_path / INDEX).write_text(content)
        with pytest.raises(InputError, match=says):
            opened(tmp_path)


def test_a_window_of_other_bytes_is_never_seen(tmp_path: Path) -> None:
    write(tmp_path, 10, [np.arange(40).reshape(20, 2) % 10], rows_per_shard=8)
    shards = opened(tmp_path)
    part = tmp_path / "shard-00001.bin"
    data = bytearray(part.read_bytes())
    data[3 * 8 + 1] ^= 1  # of window 11
    part.write_bytes(data)
    with pytest.raises(InputError, match=r"shard-00001\.bin cannot be read: window 3 is not that of its CRC32"):
        shards.windows([11])
    shards.page = 2
    assert shards.windows([8, 9, 12, 0]).tolist() == [[6, 7], [8, 9], [4, 5], [0, 1]], "the others are"


def test_what_changed_on_its_way_is_fetched_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 10, [np.arange(6).reshape(3, 2)])
    shards, reads = opened(tmp_path), []

    def flaky(entry: FileEntry) -> io.BytesIO:
        data = bytearray(Path(entry.object).read_bytes())
        data[0] ^= not reads
        reads.append(entry.path)
        return io.BytesIO(data)

    monkeypatch.setattr(reading, "open_file", flaky)
    assert shards.windows([2, 0]).tolist() == [[4, 5], [0, 1]]
    assert len(reads) == 2


def test_pages_are_read_once_and_kept_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 60_000, [np.arange(60_000).reshape(-1, 2)], rows_per_shard=1000)
    monkeypatch.setattr(module, "PAGE_BYTES", 8 * 64)
    shards, reads = opened(tmp_path), []

    def counted(entry: FileEntry) -> BinaryIO:
        reads.append(entry.path)
        return open_file(entry)

    monkeypatch.setattr(reading, "open_file", counted)
    assert (shards.page, shards.page_bytes) == (64, 512)
    shards.cache_bytes = 4 * 512
    for _ in range(3):
        assert shards.windows([0, 63, 999, 1000])[:, 0].tolist() == [0, 126, 1998, 2000]
    assert reads == ["shard-00000.bin", "shard-00000.bin", "shard-00001.bin"], "one page lies in two shards"
    shards.windows(range(0, 30_000, 64))
    assert len(shards._pages) == 4


def test_no_windows_are_an_empty_folder(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 4, 10, EOS, "d"):
        pass
    assert len(opened(tmp_path)) == 0
