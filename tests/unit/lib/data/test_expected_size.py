"""What a profile says of a source's size reaches the nodes that follow from it, and no further."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from stages.collect.spec import Collect, CollectConfig
from stages.dedup.spec import Dedup, DedupConfig
from stages.ingest.spec import Ingest, IngestConfig
from stages.lib.data.expected_size import ExpectedSize, expected_size

collect = Collect(name="collect")
web, code = Ingest(name="web", raw=collect.web), Ingest(name="code", raw=collect.code)
both = Dedup(name="both", sources=[web.documents, code.documents])
CONFIGS = {
    "collect": CollectConfig.model_validate({"expected": {"web": {"documents": 1000, "text_bytes": 5000}}}),
    "web": IngestConfig(),
    "code": IngestConfig(),
    "both": DedupConfig(),
}


def test_a_declared_size_reaches_what_follows_from_it_alone() -> None:
    assert expected_size(web.documents, CONFIGS) == ExpectedSize(documents=1000, text_bytes=5000)
    assert expected_size(code.documents, CONFIGS) is None
    assert expected_size(both.documents, CONFIGS) is None
    assert expected_size(web.documents, {}) is None


@pytest.mark.parametrize(
    ("limit", "documents", "text_bytes"), [(100, 100, 500), (1000, 1000, 5000), (9999, 1000, 5000)]
)
def test_a_limit_bounds_it(limit: int, documents: float, text_bytes: float) -> None:
    size = expected_size(web.documents, CONFIGS | {"web": IngestConfig(limit=limit)})
    assert size == ExpectedSize(documents=documents, text_bytes=text_bytes)


def test_it_is_no_part_of_the_key_and_names_ports_alone() -> None:
    assert CONFIGS["collect"].identity() == CollectConfig().identity()
    with pytest.raises(ValidationError):
        CollectConfig.model_validate({"expected": {"wab": {"documents": 1, "text_bytes": 1}}})
