"""What a corpus exceeds is known when it is planned: from what its sources are said to hold, and from its manifest."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flows import scale
from stages.collect.spec import Collect
from stages.core.artifacts import ArtifactManifest
from stages.core.errors import ConfigError
from stages.core.resources import Resources
from stages.dedup.limits import MAX_DOCUMENTS, dealt, documents_problem, filter_problem
from stages.dedup.spec import Dedup, DedupConfig
from stages.ingest.spec import Ingest, IngestConfig

collect = Collect(name="collect")
ingest = Ingest(name="ingest", raw=collect.web)
node = Dedup(name="dedup", sources=[ingest.documents])
POOL = {"documents": 13e9, "text_bytes": 60e12, "source_bytes": 24e12, "files": 1e5}


def lines(amounts: dict[str, Any], limit: int | None = None, **settings: Any) -> list[str]:
    raw = scale.expected(amounts)
    read = Ingest.scale(IngestConfig(limit=limit), {"raw": [raw]})
    sources = [scale.expected(read.outputs["documents"])]
    return [problem.line("dedup") for problem in Dedup.scale(DedupConfig(**settings), {"sources": sources}).refusals]


def test_a_pool_of_more_documents_than_have_numbers_is_refused_with_the_sum() -> None:
    assert lines(POOL) == [
        "dedup.partitions = 1: 13,000,000,000 documents / 1 = 13,000,000,000 in a partition, which numbers"
        " 4,294,967,295 (2^32 - 1): set 4 or more"
    ]
    assert lines(POOL, partitions=3)
    assert not lines(POOL, partitions=4)
    assert not lines(POOL, limit=1_000_000)


def test_a_filter_larger_than_its_memory_is_refused_with_the_sum() -> None:
    (line,) = lines(POOL, recipe="dclm", partitions=4, bloom_memory_gib=1000)
    assert line == (
        "dedup.bloom_memory_gib = 1000: a filter for 15,000.0 GB of text / 6 B = 2,500,000,000,000 n-grams at 1% false"
        " positives has 2,902.9 GiB: raise it, or partitions"
    )
    assert not lines(POOL, recipe="dclm", partitions=12, bloom_memory_gib=1000)
    assert not lines(POOL, recipe="dclm", limit=100_000)
    assert not lines(POOL, recipe="slimpajama", partitions=4)


def test_the_remedies_are_enough() -> None:
    assert documents_problem(MAX_DOCUMENTS, 1) is None
    assert (problem := documents_problem(MAX_DOCUMENTS + 1, 1)) is not None
    assert problem.remedy == "set 2 or more"
    assert documents_problem(MAX_DOCUMENTS + 1, 2) is None
    assert filter_problem(5e9, 1) is None
    assert filter_problem(6e9, 1) is not None


def test_what_is_known_of_the_inputs_is_looked_at_too() -> None:
    def check(documents: int, text_bytes: int, **settings: Any) -> None:
        meta = {"documents": documents, "text_bytes": text_bytes}
        manifest = ArtifactManifest(type="Documents", digest="0" * 64, facets={}, meta=meta, files=())
        node.check_inputs("dedup_web", DedupConfig(**settings), {"sources": [manifest, manifest]})

    check(2 * 10**9, 10**13)
    with pytest.raises(ConfigError, match=r"dedup_web\.partitions = 1: 5,000,000,000 documents"):
        check(2_500_000_000, 10**13)
    check(2_500_000_000, 10**13, partitions=2)
    with pytest.raises(ConfigError, match=r"dedup_web\.bloom_memory_gib = 1: a filter for 20\.0 GB of text"):
        check(10**7, 10**10, recipe="dclm")


def test_memory_for_filters_is_the_nodes() -> None:
    config = DedupConfig(recipe="dclm", bloom_memory_gib=100)
    assert Dedup.resources(config).memory_gib > 100
    Dedup.check_resources("dedup", config, Resources(memory_gib=101))
    with pytest.raises(ConfigError, match=r"dedup\.bloom_memory_gib = 100, but resources\.dedup\.memory_gib = 64"):
        Dedup.check_resources("dedup", config, Resources(memory_gib=64))
    with pytest.raises(ValidationError):
        DedupConfig(partitions=0)


@pytest.mark.parametrize(
    ("items", "partitions", "sizes"), [(7, 3, [3, 2, 2]), (2, 10, [1, 1]), (0, 4, [0]), (5, 1, [5])]
)
def test_shards_are_dealt_in_turn(items: int, partitions: int, sizes: list[int]) -> None:
    hands = dealt(range(items), partitions)
    assert [len(hand) for hand in hands] == sizes
    assert sorted(item for hand in hands for item in hand) == list(range(items))
    assert all(item % partitions == number for number, hand in enumerate(hands) for item in hand)
