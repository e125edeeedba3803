"""The card: metadata that the hub's own check takes, and numbers that each have a digest."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from flows import family
from flows.release import card, corpora, energy, evaluations, lineage
from stages.core.ledger import Ledger
from stages.core.resources import Resources
from tests.support.family_ledger import publish_family, republish
from tests.support.report_pages import HOSTILE

PRICES: dict[str, Any] = {"gpu": {"dollars_per_hour": 3.0}, "cpu": {"dollars_per_core_hour": 0.1}}


def facts(ledger: Ledger, node: str = "pretrain_2", **changes: Any) -> card.Facts:
    model, records = family.load()[node], ledger.nodes("tiny")
    found = lineage.trace(ledger, "tiny", model, records)
    made = card.Facts(
        lineage=found, architecture="MistralForCausalLM", dtypes=("F32",), parameters=132, gpu="H100",
        corpora=[corpora.describe(result) for result in found.corpora],
        evaluations=evaluations.read(ledger, model, found.artifact.digest, records),
        uses=[energy.use(result, Resources(), PRICES) for result in found.results.values()],
        files={"model.safetensors": "9" * 64},
    )  # fmt: skip
    return replace(made, **changes)


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_number_stands_in_a_row_that_names_a_digest_of_the_provenance(ledger: Ledger) -> None:
    publish_family(ledger)
    text = card.render(facts(ledger, "sft_tulu"))
    found = sections(text)
    whole = set(re.findall(r"`([0-9a-f]{64})`", found["Provenance"]))
    for name in ("Data", "Recipe", "Energy and cost"):
        rows = [line for line in found[name].splitlines() if line.startswith("| ") and re.search(r"\d", line)]
        assert rows, name
        for row in rows:
            if "---" in row or row.endswith("from |"):
                continue
            digest = re.search(r"`([0-9a-f]{12})` \|$", row)
            assert digest, row
            assert any(full.startswith(digest[1]) for full in whole), row


def test_scores_name_their_report_and_made_questions_are_toys(ledger: Ledger) -> None:
    made = publish_family(ledger)
    found = sections(card.render(facts(ledger)))
    report = made["evaluate_original"].outputs["report"].digest
    assert report in found["Provenance"]
    assert re.search(rf"\| toy-piqa \| acc \| 62\.5 ± 3\.0 \| 100 of 100 \| 0 \|.*no: .* `{report[:12]}` \|", 
                     found["Evaluation"])  # fmt: skip
    assert "the paper:" not in found["Evaluation"]


def test_the_papers_number_stands_beside_a_comparable_score(ledger: Ledger) -> None:
    publish_family(ledger, toys=False)
    assert "yes; the paper: 78.07" in sections(card.render(facts(ledger)))["Evaluation"]


def test_the_metadata_come_back_through_the_hubs_own_reader(ledger: Ledger) -> None:
    publish_family(ledger, toys=False)
    base = facts(ledger)
    text = card.render(base)
    data = ModelCard(text).data
    assert (data.license, data.pipeline_tag, data.library_name) == ("apache-2.0", "text-generation", "transformers")
    assert data.tags == ["moxin", "pretrain", "toy-data"]
    assert data.model_name == "Moxin-132-Original"
    assert data.base_model is None
    assert data.eval_results is not None
    assert [(r.dataset_type, r.metric_value) for r in data.eval_results] == [("baber/piqa", 0.625)]
    tuned = ModelCard(card.render(facts(ledger, "sft_tulu", base="Moxin-132-LLM", owner="us", languages=["en"]))).data
    assert (tuned.base_model, tuned.datasets, tuned.language) == ("us/Moxin-132-LLM", ["owner/chats"], ["en"])
    assert tuned.eval_results is None


def test_recipe_has_the_settings_and_measures_of_every_training_step(ledger: Ledger) -> None:
    made = publish_family(ledger)
    recipe = sections(card.render(facts(ledger, "sft_tulu")))["Recipe"]
    assert re.findall(r"^### (\w+)", recipe, re.MULTILINE) == ["pretrain_2", "sft_tulu"]
    digest = made["pretrain_2"].outputs["model"].digest[:12]
    assert f"| `learning_rate` | `0.001` | `{digest}` |" in recipe
    assert f"| final loss | 3.25 | `{digest}` |" in recipe
    assert "From `pretrain_2.model`, `instructions_tulu.train`." in recipe


def test_what_is_not_known_is_said(ledger: Ledger) -> None:
    publish_family(ledger)
    found = sections(card.render(facts(ledger, "sft_tulu")))
    assert found["Contamination"].strip() == "Not measured."
    assert "No evaluation of this very model has run." in found["Evaluation"]
    assert "not known" in found["Energy and cost"]
    assert corpora.NOT_COUNTED in found["Data"]
    assert "Toy data" in card.render(facts(ledger))
    measured = card.render(facts(ledger, contamination=["Three items.", "", "| a | b |"]))
    assert sections(measured)["Contamination"].strip() == "Three items.\n\n| a | b |"


def test_our_own_architecture_is_not_said_to_load_anywhere(ledger: Ledger) -> None:
    publish_family(ledger)
    found = facts(ledger, architecture="MoxinVLM")
    use = sections(card.render(found))["Use"]
    assert "neither transformers nor vLLM has it" in use
    assert "from_pretrained" not in use
    assert card.pipeline_tag(found) == "image-text-to-text"


@pytest.mark.parametrize("name", [HOSTILE, "a | b\n| c |", "`x`"])
def test_a_name_in_the_data_cannot_break_a_table(ledger: Ledger, name: str) -> None:
    made = publish_family(ledger)
    stats = made["ingest_text"].stats | {"per_source": {name: 90}, "skipped": {name: 4}}
    republish(ledger, made["ingest_text"], "same", stats=stats)
    ledger.store.put(
        f"manifests/{made['ingest_text'].key}.json",
        made["ingest_text"].model_copy(update={"stats": stats}).model_dump_json().encode(),
    )
    data = sections(card.render(facts(ledger)))["Data"]
    rows = [line for line in data.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} <= {5, 7}
    assert "<script" not in data
