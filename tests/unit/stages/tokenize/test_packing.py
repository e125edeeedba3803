"""The global shuffle as an external sort: one order whatever the memory, every shard a uniform sample, few files at a
time.
"""

from __future__ import annotations

import json
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.artifacts import FileEntry
from stages.core.errors import ConfigError, InfraError
from stages.lib.data.workers import Pool
from stages.tokenize import hash_sampling, packing, streams
from stages.tokenize.hash_sampling import Cut
from stages.tokenize.packing import Windows, edges, shuffle, window_keys
from stages.tokenize.streams import Encoded, Layout, Stream
from tests.support.encoded_ids import LENGTH, U16, VOCABULARY, encoded, entry, ids_of, in_order, random_parts
from tests.support.examples import max_examples

SIZES = [  # bytes of a group, of a shard, files that a task reads from
    (1 << 30, 1 << 28, 512),
    (140, 1 << 28, 512),
    (140, 300, 512),
    (140, 300, 6),
    (220, 100, 4),
]


@pytest.mark.parametrize(("group", "shard", "fan"), SIZES)
def test_the_order_is_the_same_whatever_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, shard: int, fan: int
) -> None:
    monkeypatch.setattr(packing, "GROUP_BYTES", group)
    monkeypatch.setattr(packing, "SHARD_BYTES", shard)
    monkeypatch.setattr(packing, "FAN", fan)
    parts = random_parts([100, 0, 333, 250])
    files = encoded(tmp_path, parts)
    given = [Stream(files[:3], 1000), Stream(files[3:], 90)]  # the first is read 2.3 times
    stream = np.concatenate([np.tile(np.concatenate(parts[:3]), 3)[:1000], parts[3][:90]])
    with Pool(tmp_path / "work") as pool:
        plain, steps = pool.map, list[str]()
        monkeypatch.setattr(pool, "map", lambda name, *rest: steps.append(name) or plain(name, *rest))
        shards = shuffle(pool, "train", given, Windows(LENGTH, "uint16", VOCABULARY, 5))
    assert np.array_equal(ids_of(shards), in_order(stream, 5))
    assert ("train-deal-again" in steps) == (fan < 10)
    assert len(shards) >= 8 or shard > 300


@max_examples(30)
@given(
    st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=5), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(10, 400),
    st.integers(10, 400),
    st.integers(2, 9),
    st.floats(0.1, 3.5),
)
def test_any_sizes_give_the_order_of_a_sort_in_memory(
    sizes: list[list[int]], length: int, group: int, shard: int, fan: int, epochs: float
) -> None:
    parts = [random_parts(of_one, n) for n, of_one in enumerate(sizes)]
    takes = [int(sum(of_one) * epochs) for of_one in sizes]
    stream = np.concatenate(
        [np.tile(np.concatenate(part), 4)[:take] for part, take in zip(parts, takes, strict=True)]
    ).astype(np.uint16)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch, Pool(Path(name) / "w") as pool:
        patch.setattr(packing, "GROUP_BYTES", group)
        patch.setattr(packing, "SHARD_BYTES", shard)
        patch.setattr(packing, "FAN", fan)
        folder = Path(name)
        given = [
            Stream(encoded(folder, part, f"s{n}"), take)
            for n, (part, take) in enumerate(zip(parts, takes, strict=True))
        ]
        groups = -(-(sum(takes) // length) // max(1, group // (2 * length)))
        if groups > fan * fan // 4:
            return  # perhaps more than two deals can sort
        shards = shuffle(pool, "train", given, Windows(length, "uint16", VOCABULARY, 1))
        assert np.array_equal(ids_of(shards, length), in_order(stream, 1, length))


def test_every_shard_is_a_uniform_sample_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus of ten 'languages' one after another: chi-squared of the languages of the windows over the shards, of
    their places within a shard over ten places, and of neighbours; 5 sigma.
    """
    monkeypatch.setattr(packing, "GROUP_BYTES", 4 * 1000)
    monkeypatch.setattr(packing, "SHARD_BYTES", 4 * 500)
    ids = np.repeat(np.arange(3, 13, dtype=np.uint16), 2 * 2000)
    with Pool(tmp_path / "work") as pool:
        shards = shuffle(
            pool, "train", [Stream(encoded(tmp_path, [ids]), len(ids))], Windows(2, "uint16", VOCABULARY, 1)
        )
    assert len(shards) == 40
    languages = [ids_of([shard], 2)[:, 0] - 3 for shard in shards]
    everything = np.concatenate(languages)
    assert np.array_equal(np.bincount(everything), [2000] * 10)

    def independent(table: np.ndarray) -> None:
        expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        assert abs(float(((table - expected) ** 2 / expected).sum()) - freedom) < 5 * (2 * freedom) ** 0.5

    independent(np.stack([np.bincount(of_one, minlength=10) for of_one in languages]))
    places = np.concatenate([np.arange(len(of_one)) * 10 // len(of_one) for of_one in languages])
    independent(np.bincount(places * 10 + everything, minlength=100).reshape(10, 10))
    independent(np.bincount(everything[:-1] * 10 + everything[1:], minlength=100).reshape(10, 10))


def test_the_order_is_a_permutation_that_the_seed_decides() -> None:
    """Every place is equally likely for a window: chi-squared over 64 places, 5 sigma."""
    orders = [np.argsort(window_keys(0, 64, seed), kind="stable") for seed in range(2000)]
    assert all(sorted(order) == list(range(64)) for order in orders)
    counts = np.bincount([int(np.flatnonzero(order == 17)[0]) for order in orders], minlength=64)
    expected = len(orders) / 64
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi - 63) < 5 * (2 * 63) ** 0.5


@given(st.integers(1, 10**6), st.data())
def test_the_ranges_of_the_keys_are_equal(partitions: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, partitions - 1))
    around = edges(max(0, part - 1), min(partitions, part + 2), 1, partitions).tolist()
    low, high = ([0] if not part else []) + around, [1 << 64]
    bounds = low + (high if part + 1 == partitions else [])
    key = data.draw(st.integers(bounds[0], bounds[1] - 1))
    assert key * partitions >> 64 == part


def test_a_task_reads_few_files_and_opens_fewer_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred groups with a fan of 16: no task reads from more files than that (and its table), whatever the step."""
    for name, value in {"GROUP_BYTES": 140, "SHARD_BYTES": 30, "FAN": 16}.items():
        monkeypatch.setattr(packing, name, value)
    lock, now, most, read = threading.Lock(), [0], [0], set[str]()

    @contextmanager
    def watched(file: FileEntry) -> Any:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            read.add(file.object)
        with open(file.object, "rb") as stream:
            yield stream
        with lock:
            now[0] -= 1

    monkeypatch.setattr(packing, "open_file", watched)
    monkeypatch.setattr(streams, "open_file", watched)
    of_tasks: dict[str, int] = {}
    for name in ("deal", "deal_again", "gather", "collate"):
        function = getattr(packing, name)

        def counted(folder: Path, _function: Any = function, _name: str = name, **arguments: Any) -> Any:
            read.clear()
            value = _function(folder, **arguments)
            of_tasks[_name] = max(of_tasks.get(_name, 0), len(read))
            return value

        counted.__qualname__, counted.__module__ = name, packing.__name__
        monkeypatch.setattr(packing, name, counted)
    ids = random_parts([7 * 1000])
    with Pool(tmp_path / "work") as pool:
        shards = shuffle(
            pool, "train", [Stream(encoded(tmp_path, ids), 7000)], Windows(LENGTH, "uint16", VOCABULARY, 1)
        )
    assert np.array_equal(ids_of(shards), in_order(ids[0], 1))
    assert of_tasks == {"deal": 1, "collate": 10, "deal_again": 11, "gather": 7}  # with the table
    assert most[0] <= streams.READERS


def test_more_than_two_deals_can_sort_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"GROUP_BYTES": 14, "SHARD_BYTES": 14, "FAN": 4}.items():
        monkeypatch.setattr(packing, name, value)
    stream = Stream(encoded(tmp_path, random_parts([700])), 700)
    with (
        Pool(tmp_path / "work") as pool,
        pytest.raises(ConfigError, match=r"100 windows of 14 bytes are 100 groups of 14 bytes: 16 can be shuffled"),
    ):
        shuffle(pool, "train", [stream], Windows(LENGTH, "uint16", VOCABULARY, 1))
    assert not list((tmp_path / "work").glob("*")), "nothing was read"


def test_a_range_that_came_damaged_is_fetched_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flips: list[int] = []

    @contextmanager
    def flipping(file: FileEntry) -> Any:
        with open(file.object, "rb") as stream, tempfile.TemporaryFile() as wrong:
            if file.path != "windows" or not flips:
                yield stream
                return
            data = bytearray(stream.read())
            data[flips.pop()] ^= 4
            wrong.write(data)
            wrong.seek(0)
            yield wrong

    ids = random_parts([700])
    stream = Stream(encoded(tmp_path, ids), 700)
    for n, wrong in enumerate(([30], [30, 2000])):
        with Pool(tmp_path / f"{n}") as pool:
            monkeypatch.setattr(packing, "open_file", flipping)
            flips[:] = wrong
            if len(wrong) == 1:
                found = ids_of(shuffle(pool, "train", [stream], Windows(LENGTH, "uint16", VOCABULARY, 1)))
                assert np.array_equal(found, in_order(ids[0], 1))
            else:
                with pytest.raises(InfraError, match=r"windows 0 to 100 of .*windows came damaged twice"):
                    shuffle(pool, "train", [stream], Windows(LENGTH, "uint16", VOCABULARY, 1))


def test_an_id_outside_the_vocabulary_is_an_error(tmp_path: Path) -> None:
    stream = Stream(encoded(tmp_path, [np.array([3, 4, 300, 5], np.uint16)]), 4)
    with Pool(tmp_path / "work") as pool, pytest.raises(ValueError, match="ids run from 3 to 300"):
        shuffle(pool, "train", [stream], Windows(2, "uint16", VOCABULARY, 1))


# --- where ids lie ----------------------------------------------------------------------------------------------------


def test_a_file_that_ends_too_early_and_a_stream_without_ids_are_named(tmp_path: Path) -> None:
    (file,) = encoded(tmp_path, random_parts([10]))
    with pytest.raises(InfraError, match=r"ids-0 ended 4 bytes too early"):
        streams.read([{"ids": file.ids.value(), "first": 5, "end": 12}], U16)
    with pytest.raises(ValueError, match="a stream without ids was asked for some"):
        Layout([Stream([], 3)])


@max_examples(40)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, hash_sampling.ALL), st.integers(1, 60)), max_size=25),
        min_size=1,
        max_size=4,
    ).filter(lambda files: any(files)),
    st.integers(1, 3),
    st.floats(0.01, 2.5),
    st.data(),
)
def test_the_cut_is_the_shortest_prefix_that_suffices_and_its_ids_are_read(
    files: list[list[tuple[int, int]]], group: int, epochs: float, data: st.DataObject
) -> None:
    """The documents with the lowest places, by a sort in memory; and a range of a stream that ends in such a pass."""
    flat = [row for rows in files for row in rows]
    places = data.draw(st.lists(st.integers(0, hash_sampling.ALL), min_size=len(flat), max_size=len(flat), unique=True))
    rows = iter(places)
    files = [[(next(rows), tokens) for _, tokens in of_one] for of_one in files]
    flat = [row for of_one in files for row in of_one]
    total = sum(tokens for _, tokens in flat)
    take = max(1, int(total * epochs))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch, Pool(Path(name) / "w") as pool:
        patch.setattr(hash_sampling, "FILES", group)
        patch.setattr(streams, "READ_TOKENS", 37)
        folder, parts = Path(name), random_parts([sum(tokens for _, tokens in of_one) for of_one in files])
        given = []
        for n, (of_one, file) in enumerate(zip(files, encoded(folder, parts), strict=True)):
            where, tokens = (np.array([row[k] for row in of_one], t) for k, t in ((0, np.uint64), (1, np.int64)))
            hash_sampling.write_rows(folder / f"d{n}", where, tokens)
            given.append(Encoded(file.ids, file.tokens, entry(folder / f"d{n}")))
        rest = take % total
        cut = (
            hash_sampling.cut(pool, "cut", [file.documents for file in given if file.documents], rest) if rest else None
        )
        chosen = [[True] * len(of_one) for of_one in files]
        if cut is not None:
            wanted = sorted(row for row in flat if row[0] <= cut.last)
            assert sum(t for _, t in wanted) >= rest
            assert sum(t for _, t in wanted[:-1]) < rest or rest == 0
            chosen = [[place <= cut.last for place, _ in of_one] for of_one in files]
            assert list(cut.taken) == [
                sum(t for (_, t), mine in zip(of_one, taken, strict=True) if mine)
                for of_one, taken in zip(files, chosen, strict=True)
            ]
        last = [
            ids[np.repeat(np.array(taken, bool), [t for _, t in of_one])]
            for ids, taken, of_one in zip(parts, chosen, files, strict=True)
        ]
        stream = np.concatenate([*parts * (take // total), *(last if rest else [])])[:take]
        layout = Layout([Stream(given, take, cut)])
        assert layout.total == take
        first = data.draw(st.integers(0, take))
        end = data.draw(st.integers(first, take))
        pieces = json.loads(json.dumps(layout.pieces(first, end)))
        assert np.array_equal(streams.read(pieces, U16), stream[first:end])


def test_what_needs_every_document_is_no_cut(tmp_path: Path) -> None:
    hash_sampling.write_rows(tmp_path / "d", np.array([5, 1 << 63], np.uint64), np.array([10, 20]))
    with Pool(tmp_path / "work") as pool:
        assert hash_sampling.cut(pool, "a", [entry(tmp_path / "d")], 30) is None
        assert hash_sampling.cut(pool, "b", [entry(tmp_path / "d")], 10) == Cut(5, (10,))
