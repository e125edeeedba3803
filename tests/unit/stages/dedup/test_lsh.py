"""`stages.dedup.lsh`: buckets whose records come bit by bit give the pairs of whole buckets, in bounded memory."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.artifacts import FileEntry
from stages.dedup import lsh
from stages.dedup.lsh import ALL_PAIRS, BANDS, PAIRS, Buckets, bucket_pairs, distinct
from stages.dedup.union_find import clusters, unite
from stages.lib.data import spills, stored_array
from stages.lib.data.shuffle import Cut, Spiller, gather, read_all
from stages.lib.data.workers import Pool


def plain_pairs(keys: list[int], star: bool) -> list[tuple[int, int]]:
    """Documents are places in the list."""
    found = set()
    for key in set(keys):
        bucket = [n for n, other in enumerate(keys) if other == key]
        if len(bucket) <= ALL_PAIRS and not star:
            found |= {(a, b) for a in bucket for b in bucket if a < b}
        else:
            found |= {(bucket[0], b) for b in bucket[1:]}
            found |= set() if star else set(itertools.pairwise(bucket))
    return sorted(found)


@given(
    st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7]), max_size=150),
    st.lists(st.integers(0, 150), max_size=6),
    st.booleans(),
)
def test_buckets_in_pieces_give_the_pairs_of_whole_buckets(keys: list[int], cuts: list[int], star: bool) -> None:
    """With as little held as can be: each piece is looked at as it comes."""
    key, document = np.array(keys, np.uint64), np.arange(len(keys), dtype=np.uint32)
    bounds = [0, *sorted(min(cut, len(keys)) for cut in cuts), len(keys)]
    buckets, found = Buckets(star), [np.empty(0, np.uint64)]
    for low, high in itertools.pairwise(bounds):
        found.append(buckets.add([key[low:high]], [document[low:high]], last=high == len(keys)))
        assert len(buckets) <= 8 * ALL_PAIRS
    pairs = distinct(np.concatenate(found))
    wanted = [a << 32 | b for a, b in plain_pairs(keys, star)]
    assert pairs.tolist() == wanted
    order = np.argsort(key, kind="stable")
    assert bucket_pairs(key[order], document[order], star).tolist() == wanted


@pytest.mark.slow  # 810,000 records, twice, traced
@pytest.mark.parametrize("star", [False, True])
def test_a_bucket_larger_than_memory_streams(tmp_path: Path, star: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """800,000 documents share a band, thousands of others do in small buckets: the clusters are those of the records,
    with less than half of them in memory.
    """
    total, many = 810_000, 800_000
    keys = np.arange(total, dtype=np.uint64) // np.uint64(3) + np.uint64(1 << 40)
    huge = np.sort(np.random.default_rng(0).permutation(total)[:many])
    keys[huge] = 7
    pool = Pool(tmp_path)
    monkeypatch.setattr(spills, "CHUNK_BYTES", 1 << 17)
    first = tmp_path / "first"
    first.mkdir()
    spiller = Spiller(first, "bands", BANDS, Cut(1, 1))
    spiller.add(np.zeros(total, np.uint32), keys, np.arange(total, dtype=np.uint32))
    spiller.close()
    source = gather(pool, "bands", [_stored(pool, "bands", first)], Cut(1, 1)).source(0)
    plain = lsh.Spiller
    monkeypatch.setattr(lsh, "Spiller", lambda *arguments: plain(*arguments, held=1 << 20))
    width, ranges = 50_000, Cut.into(17)
    out = tmp_path / "out"
    out.mkdir()
    bucket_pairs(keys[:3], np.arange(3, dtype=np.uint32))  # compiles
    tracemalloc.start()
    made = lsh.pair(tmp_path / "out", source, star, 20_000, width, {"partitions": 17, "per_block": 1})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < total * 12 / 2, "records have 12 bytes"
    pairs = gather(pool, "pairs", [_stored(pool, "out", out)], ranges)
    parent = np.arange(total, dtype=np.uint32)
    seen = 0
    for n in range(17):
        found = read_all(pairs.source(n), PAIRS).columns[0]
        firsts, seconds = (found >> np.uint64(32)).astype(np.uint32), (found & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        assert (seconds // width == n).all()
        unite(parent, firsts, seconds)
        seen += len(found)
    assert seen == made >= (many - 1 if star else 2 * many - 3)
    wanted = np.arange(total, dtype=np.uint32)
    order = np.argsort(keys, kind="stable").astype(np.uint32)
    same = keys[order][1:] == keys[order][:-1]
    unite(wanted, order[:-1][same], order[1:][same])
    assert np.array_equal(clusters(parent), clusters(wanted))


def _stored(pool: Pool, name: str, folder: Path) -> list[FileEntry]:
    def moved(target: Path) -> None:
        for path in folder.iterdir():
            path.rename(target / path.name)

    return stored_array.store_files(pool, name, moved)
