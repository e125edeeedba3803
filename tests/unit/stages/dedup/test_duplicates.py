"""`stages.dedup.duplicates`: how the work is cut decides nothing."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.dedup import duplicates
from stages.dedup.union_find import LARGE, around, cut_slices, find, splice
from stages.lib.data.shuffle import gather
from tests.support.deduplication import dedup, planted
from tests.support.pool_tasks import corpus, parts


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=60), st.integers(1, 9))
def test_slices_hold_whole_trees_or_parts_of_a_large_one(pairs: list[tuple[int, int]], most: int) -> None:
    edges = np.array([pair for pair in pairs if pair[0] != pair[1]], np.uint32).reshape(-1, 2)
    parent, following = np.arange(61, dtype=np.uint32), np.arange(61, dtype=np.uint32)
    splice(parent, following, edges[:, 0], edges[:, 1])
    order = around(parent, following)
    places = np.empty(len(order), np.uint32)
    count = cut_slices(parent, order, most, places)
    number, large = places & ~LARGE, places >= LARGE
    assert sorted(set(number.tolist())) == list(range(count))
    trees: dict[int, list[int]] = {}
    for document, place in zip(order.tolist(), range(len(order)), strict=True):
        trees.setdefault(int(find(parent, document)), []).append(place)
    for tree in trees.values():
        assert (len(tree) > most) == bool(large[tree].all()) == bool(large[tree].any())
        assert len(tree) > most or len(set(number[tree].tolist())) == 1
    assert all(int((number == n).sum()) <= most for n in range(count))


@pytest.mark.parametrize("recipe", ["slimpajama", "the-stack", "the-stack-as-published"])
def test_small_slices_and_merges_give_the_same_bytes(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of three documents: clusters have several, whose texts go to others' too; and files are merged by twos."""
    rng_texts = planted(12, size=12, copies=60)
    sources = [*corpus(), rng_texts[::2], rng_texts[1::2], rng_texts[:5]]
    whole = dedup(tmp_path / "whole", *sources, recipe=recipe)
    monkeypatch.setattr(duplicates, "SLICE_DOCUMENTS", 3)
    monkeypatch.setattr(duplicates, "RECORD_BYTES", 1 << 20)
    monkeypatch.setattr(duplicates, "gather", functools.partial(gather, fan=2))
    small = dedup(tmp_path / "small", *sources, recipe=recipe)
    assert parts(tmp_path / "small") == parts(tmp_path / "whole")
    for name in ("funnel", "clusters", "cluster_sizes", "example_clusters"):
        assert small.stats[name] == whole.stats[name]
    assert small.stats.get("candidate_pairs") == whole.stats.get("candidate_pairs")
    assert len(list(tmp_path.glob("small/**/bands-merge"))) == 1
