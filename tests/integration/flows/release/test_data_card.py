"""The card of a corpus: counts by reason, source and licence, each with its digest."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import DatasetCard

from flows.release import corpora, data_card
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from tests.support.family_ledger import artifact, publish_family
from tests.support.report_pages import publish

SETS = [
    {"id": "baber/piqa", "origin": "machine", "license": "MIT", "rows": {"default": {"validation": 30}}},
    {"id": "cais/mmlu", "origin": "hub", "license": "", "revision": "c" * 40, "rows": {"all": {"test": 12, "dev": 5}}},
]  # fmt: skip


def test_a_corpus_with_its_reasons_sources_and_licences(ledger: Ledger) -> None:
    made = publish_family(ledger)["ingest_text"]
    text = data_card.render(made, corpora.describe(made), {})
    digest = made.outputs["documents"].digest
    assert f"| `documents` | text | 90 | 9,000 | 1 | 4 | `{digest[:12]}` |" in text
    assert "100 rows came in." in text
    assert f"| too short | 6 | `{digest[:12]}` |" in text
    assert f"| source | prose | 90 | `{digest[:12]}` |" in text
    assert f"| licence | {corpora.UNNAMED} | 10 | `{digest[:12]}` |" in text
    assert f"| output | `documents` | `{digest}` |" in text
    data = DatasetCard(text).data
    assert data.license == ["apache-2.0", "mit", "unknown"]
    assert (data.size_categories, data.task_categories) == ("n<1K", ["text-generation"])


def test_licences_that_nobody_counted_are_unknown(ledger: Ledger) -> None:
    made = publish_family(ledger)["dedup_text"]
    text = data_card.render(made, corpora.describe(made), {})
    assert f"| licence | {corpora.NOT_COUNTED} |" in text
    assert DatasetCard(text).data.license == ["unknown"]


def test_a_suite_lists_its_data_sets_and_toys_by_another_name(ledger: Ledger) -> None:
    files = {"suite.json": json.dumps({"data_sets": SETS}).encode()}
    made = publish(ledger, "capability", outputs={"suite": artifact(ledger, "capability", "suite", "EvalSuite", files)})
    listings = data_card.read_listings(ledger, made)
    corpus = data_card.with_listings(corpora.describe(made), listings)
    assert corpus.outputs[0].rows == 47
    assert corpus.outputs[0].per_source == {"toy-piqa": 30, "cais/mmlu": 17}
    assert corpus.outputs[0].per_license == {"MIT": 30, corpora.UNNAMED: 17}
    text = data_card.render(made, corpus, listings)
    assert "| toy-piqa | made by the run, in its schema |  | MIT | 30 |" in text
    assert f"| cais/mmlu | hub | {'c' * 40} | {corpora.UNNAMED} | 17 |" in text
    assert "baber/piqa" not in text


def test_a_listing_that_was_changed_is_refused(ledger: Ledger) -> None:
    files = {"suite.json": json.dumps({"data_sets": SETS}).encode()}
    made = publish(ledger, "capability", outputs={"suite": artifact(ledger, "capability", "suite", "EvalSuite", files)})
    ledger.store.put(made.outputs["suite"].files[0].object, b'{"data_sets": []}')
    with pytest.raises(ConfigError, match=r"capability\.suite: its suite\.json is lost or damaged"):
        data_card.read_listings(ledger, made)
