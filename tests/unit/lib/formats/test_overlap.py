"""The form of an overlap: what is written is read, what is damaged is named, and what an item is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import InputError
from stages.lib.formats.overlap import (
    ItemOverlap,
    Match,
    Overlap,
    OverlapRule,
    items_path,
    parse_items,
    parse_overlap,
    write_items,
    write_overlap,
)

GPT3 = OverlapRule(name="gpt3", run=13, min_words=8, common=10, skips=0)
LLAMA2 = OverlapRule(name="llama2", run=11, min_words=11, common=None, skips=4)


def match(node: str, *spans: tuple[int, int]) -> Match:
    return Match(node=node, fraction=0.5, longest=5, spans=spans, document="d")


def item(*matches: Match) -> ItemOverlap:
    return ItemOverlap(config="c", split="test", item=3, mark="m", words=100, matches=matches)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    overlap = Overlap(rule=GPT3, runs=5, ignored_runs=1, equal_hashes=0, training=(), splits=())
    write_overlap(tmp_path, overlap)
    assert parse_overlap((tmp_path / "overlap.json").read_bytes(), "it") == overlap
    rows = [item(match("a", (0, 5))), ItemOverlap(config="c", split="s", item=0, mark="n", words=2, skipped=True)]
    write_items(tmp_path, "owner/name", rows)
    assert parse_items((tmp_path / items_path("owner/name")).read_bytes(), "it") == rows


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    write_items(tmp_path, "owner/name", [item(), item()])
    data = (tmp_path / items_path("owner/name")).read_bytes()
    with pytest.raises(InputError, match="the file, line 2 is no overlap"):
        parse_items(data[:-5], "the file")
    with pytest.raises(InputError, match="x is no overlap of version 1"):
        parse_overlap(b"{", "x")


def test_an_item_is_dirty_for_the_models_that_learned_from_the_node() -> None:
    found = item(match("phase_1", (0, 13)))
    assert found.category(GPT3, {"phase_1", "phase_2"}) == "dirty"
    assert found.category(GPT3, {"phase_2"}) == "clean"


def test_words_that_two_nodes_hold_count_once_and_the_limits_are_llama_2s() -> None:
    found = item(match("a", (0, 15)), match("b", (10, 20)), match("c", (20, 79)), match("d", (79, 80)))
    assert found.share({"a", "b"}) == 0.2
    assert [found.category(LLAMA2, nodes) for nodes in ({"a"}, {"a", "b"}, {"a", "b", "c"}, {"a", "b", "c", "d"})] == [
        "clean",
        "not clean",
        "not clean",
        "dirty",
    ]
    skipped = ItemOverlap(config="c", split="s", item=0, mark="n", words=0, skipped=True)
    assert skipped.share({"a"}) == 0.0
    assert skipped.category(LLAMA2, {"a"}) == "skipped"
