"""What results say of their data: rows by reason, by source and by licence."""

from __future__ import annotations

from typing import Any

import pytest

from flows.release import corpora
from stages.core.ledger import Ledger
from tests.support.family_ledger import artifact, publish_family
from tests.support.report_pages import publish


def test_counts_of_what_came_in_stayed_and_went(ledger: Ledger) -> None:
    made = publish_family(ledger)
    corpus = corpora.describe(made["ingest_text"])
    (out,) = corpus.outputs
    assert (corpus.read, out.rows, out.text_bytes) == (100, 90, 9000)
    assert corpus.removed == {"not text": 4, "too short": 6}
    assert corpus.read - sum(corpus.removed.values()) == out.rows
    assert out.per_source == {"prose": 90}
    assert out.per_license == {corpora.UNNAMED: 10, "MIT": 50, "Apache-2.0": 30}
    assert out.digest == made["ingest_text"].outputs["documents"].digest


def test_parts_cut_out_of_what_stays_are_no_rows_and_what_nobody_counted_is_unknown(ledger: Ledger) -> None:
    corpus = corpora.describe(publish_family(ledger)["dedup_text"])
    assert (corpus.read, corpus.removed) == (90, {"near duplicate": 20})
    assert corpus.outputs[0].per_license is None


@pytest.mark.parametrize(("origin", "names"), [("machine", ["toy-gqa"]), ("listing", ["gqa"])])
def test_made_images_never_carry_a_benchmarks_bare_name(ledger: Ledger, origin: str, names: list[str]) -> None:
    train = artifact(ledger, "scenes", "train", "ImageConversations", {"part-00000.jsonl": b"{}"}, kinds={"gqa": 3})
    made = publish(ledger, "scenes", outputs={"train": train}, config={"origin": origin})
    assert list(corpora.describe(made).outputs[0].per_source) == names


@pytest.mark.parametrize(
    ("stats", "removed"),
    [
        ({"scored": 804, "documents": 80}, {"scored below the threshold": 724}),
        ({"removed": {"duplicate": 3, "no turns": 0}}, {"duplicate": 3}),
        ({"removed": {"toy-piqa": {"repeated": 2, "shared": 0}}}, {"toy-piqa: repeated": 2}),
        ({"left_out": {"no image": 7}}, {"no image": 7}),
        ({"funnel": {"read": 5, "gradable": 4}}, {}),
    ],
)
def test_reasons_of_every_kind_of_stage(stats: dict[str, Any], removed: dict[str, int]) -> None:
    assert corpora.removed(stats) == removed


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"sources": [{"data_set": "a/b"}, {"data_set": "a/b"}, {"data_set": "c/d"}]}, ("a/b", "c/d")),
        ({"text": [{"uri": "hf://x/y@0123"}], "web": [{"uri": "https://host/a/b"}], "code": []}, ("x/y",)),
        ({"data_sets": {"e/f": {"origin": "hub"}, "g/h": {"origin": "machine"}}}, ("e/f",)),
        ({"sources": ["a/b"]}, ()),
    ],
)
def test_the_hubs_data_sets_are_those_that_the_settings_name(config: dict[str, Any], names: tuple[str, ...]) -> None:
    assert corpora.data_sets(config) == names
