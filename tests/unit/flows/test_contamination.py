"""What a model learned from, and its scores on clean and dirty items."""

from __future__ import annotations

from typing import Any

import pytest

from flows import contamination
from stages.lib.formats.overlap import OverlapRule
from stages.pipeline import PIPELINE
from tests.support.overlaps import GPT3, QUESTIONS, Results, pipeline

CORPUS = {"dedup_text.documents", "quality_web.kept", "dedup_code.documents"}


def measure(results: Results) -> dict[str, Any]:
    ledger: Any = results
    measured = contamination.measure(ledger, pipeline(), results.results)
    assert measured is not None
    return measured


def test_a_model_learned_from_what_its_parents_learned_from() -> None:
    assert contamination.learned_from(PIPELINE, "pretrain_2") == CORPUS
    base = CORPUS | {"capability.train"}
    assert contamination.learned_from(PIPELINE, "pretrain_3") == base
    tulu = base | {"instructions_tulu.train", "preferences_tulu.train"}
    assert contamination.learned_from(PIPELINE, "dpo_tulu") == tulu
    reason = tulu | {"reasoning_traces.train"}
    assert contamination.learned_from(PIPELINE, "sft_reason") == reason, "problems it is measured on are not learned"
    assert contamination.learned_from(PIPELINE, "grpo_areal") == reason | {"problems.train"}
    assert contamination.learned_from(PIPELINE, "vlm") == base | {"scenes.train"}


def test_scores_on_clean_and_dirty_items_depend_on_the_lineage() -> None:
    results = Results()
    results.overlap()
    results.evaluation("evaluate_original", "pretrain_2", [1.0, 0.0, 1.0, 0.0])
    results.evaluation("evaluate_enhanced", "sft_tulu", [1.0, 1.0, 1.0, 0.0])
    measured = measure(results)
    assert measured["problems"] == []
    original, tuned = measured["evaluations"]
    assert (original["model"], original["training"]) == ("pretrain_2", ["dedup_text"])
    assert original["not_scanned"] == ["dedup_code.documents", "quality_web.kept"]
    (task,) = original["tasks"]
    assert task["items"] == {"all": 4, "clean": 2, "dirty": 1, "skipped": 1}
    assert task["scores"] == {"all": 0.5, "clean": 0.0, "dirty": 1.0, "skipped": 1.0}
    assert tuned["training"] == ["capability", "dedup_text", "instructions_tulu"]
    (task,) = tuned["tasks"]
    assert task["items"] == {"all": 4, "clean": 1, "dirty": 2, "skipped": 1}
    assert task["scores"]["dirty"] == 1.0


def test_llama_2s_rule_has_its_categories() -> None:
    results = Results()
    results.overlap(OverlapRule(name="llama2", run=11, min_words=11, common=None, skips=4))
    results.evaluation("evaluate_original", "pretrain_2", [1.0, 0.0, 1.0, 0.0])
    measured = measure(results)
    assert measured["evaluations"][0]["tasks"][0]["items"]["dirty"] == 1
    assert contamination.rule_in_words(measured["overlap"]).startswith("dirty: 80 % of the words lie in spans of 11")
    assert "13 words in a row" in contamination.rule_in_words({"rule": GPT3.model_dump()})


def test_documents_that_no_item_is_recognised_in_are_counted() -> None:
    results = Results()
    results.overlap()
    results.evaluation("evaluate_original", "pretrain_2", [1.0, 0.0, 1.0, 1.0], (*QUESTIONS[:3], "another"))
    (task,) = measure(results)["evaluations"][0]["tasks"]
    assert task["items"]["unknown"] == 1


def test_a_problem_with_several_programs_is_one_item() -> None:
    """`execute_code` writes a line for each program; the first has what the problem's programs come to."""
    results = Results()
    results.overlap()
    results.evaluation("evaluate_original", "pretrain_2", [1.0, 0.0, 1.0, 0.0], programs=3)
    (task,) = measure(results)["evaluations"][0]["tasks"]
    assert task["items"] == {"all": 4, "clean": 2, "dirty": 1, "skipped": 1}
    assert task["scores"] == {"all": 0.5, "clean": 0.0, "dirty": 1.0, "skipped": 1.0}


def test_what_cannot_be_read_is_named() -> None:
    results = Results()
    results.evaluation("evaluate_original", "pretrain_2", [1.0, 0.0, 1.0, 0.0])
    assert measure(results)["overlap"] is None
    results.overlap()
    (samples,) = [key for key in results.objects if "samples" in key]
    results.objects[samples] = b"{}"
    assert measure(results)["problems"] == [
        "evaluate_original: samples/zero_shot.piqa.jsonl of a EvalReport is not what was published (another SHA-256)"
    ]
    (overlap,) = [key for key in results.objects if "overlap.json" in key]
    del results.objects[overlap]
    measured = measure(results)
    assert (measured["overlap"], measured["problems"]) == (None, ["overlap.json of a Overlap is not in the store"])


def test_a_data_set_that_was_not_looked_for_is_said() -> None:
    results = Results()
    results.overlap()
    results.results["contamination"].outputs["out"] = results.artifact(
        "Overlap", {"overlap.json": results.objects[next(k for k in results.objects if "overlap.json" in k)].decode()}
    )
    results.evaluation("evaluate_original", "pretrain_2", [1.0, 0.0, 1.0, 0.0])
    assert measure(results)["problems"] == [
        "evaluate_original: no suite that was looked for holds some/questions (piqa)"
    ]


def test_a_card_says_what_was_measured_or_how_to() -> None:
    results = Results()
    how = ["Not measured. `moxin run --profile tiny --select contamination` does it."]
    assert contamination.summary(None, "pretrain_2", "tiny") == how
    assert contamination.summary(measure(results), "pretrain_2", "tiny") == how
    results.overlap()
    results.evaluation("evaluate_original", "pretrain_2", [1.0, 0.0, 1.0, 0.0])
    lines = contamination.summary(measure(results), "pretrain_2", "tiny")
    assert "| toy-piqa | 0 | 4 | 1 | 1 | 0 | 50.0 | 0.0 | 100.0 |" in lines
    assert "Not looked through: dedup_code.documents, quality_web.kept." in lines[0]
    assert contamination.summary(measure(results), "pretrain_3", "tiny") == how


@pytest.mark.parametrize("with_node", [True, False])
def test_a_pipeline_may_have_no_such_node(with_node: bool) -> None:
    everything = pipeline()
    chosen = everything if with_node else type(everything)([n for n in everything if n.stage != "contamination"])
    assert (contamination.measuring_node(chosen) is not None) == with_node
