"""Scores on a card and in model-index: of this very model, and made questions never as the benchmark's result."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCardData

from flows import family
from flows.release import evaluations
from flows.release.evaluations import Evaluations
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from tests.support.family_ledger import publish_family, publish_scores

MODEL = family.load()["pretrain_2"]


def read(ledger: Ledger, digest: str) -> Evaluations:
    return evaluations.read(ledger, MODEL, digest, ledger.nodes("tiny"))


def test_made_questions_are_a_data_set_of_another_name(ledger: Ledger) -> None:
    made = publish_family(ledger)
    found = read(ledger, made["pretrain_2"].outputs["model"].digest)
    assert [result.name for result in found.results] == ["toy-piqa", "toy-piqa"]
    assert all(result.printed is None and result.reasons for result in found.results)
    (entry,) = evaluations.eval_results(found.results, "text-generation")
    assert entry.dataset_type == "toy-piqa"
    assert entry.metric_value == 0.625
    text = ModelCardData(eval_results=[entry], model_name="m").to_yaml()
    assert "baber/piqa" not in text
    assert "name: PIQA" not in text


def test_a_real_score_names_data_set_report_and_shots_and_stands_beside_the_papers(ledger: Ledger) -> None:
    made = publish_family(ledger, toys=False)
    found = read(ledger, made["pretrain_2"].outputs["model"].digest)
    headline, other = found.results
    assert (headline.printed, headline.reasons) == (pytest.approx(0.7807), ())
    assert other.printed is None
    (entry,) = evaluations.eval_results(found.results, "text-generation")
    assert (entry.dataset_type, entry.dataset_name, entry.dataset_split) == ("baber/piqa", "PIQA", "test")
    assert entry.metric_args["report_sha256"] == made["evaluate_original"].outputs["report"].digest
    assert entry.metric_name == "acc, 0-shot, lm-evaluation-harness 0.4.13"
    assert found.digests == {"evaluate_original": made["evaluate_original"].outputs["report"].digest}


def test_a_report_on_another_result_of_the_model_counts_as_missing(ledger: Ledger) -> None:
    made = publish_family(ledger)
    publish_scores(ledger, made["pretrain_2"], toys=True, digest="f" * 64)
    found = read(ledger, made["pretrain_2"].outputs["model"].digest)
    assert (found.results, found.pending) == ((), ("evaluate_original",))


def test_a_report_that_is_gone_is_one_line(ledger: Ledger) -> None:
    made = publish_family(ledger)
    report = made["evaluate_original"].outputs["report"].files[0]
    ledger.store.delete([report.object])
    with pytest.raises(
        ConfigError, match=r"evaluate_original\.report: its report\.json is not in the store: run 'moxin"
    ):
        read(ledger, made["pretrain_2"].outputs["model"].digest)
