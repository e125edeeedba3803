"""The same prompts answered by several models: which are chosen, and what of an answer is shown."""

from __future__ import annotations

from typing import Any

from flows.report import samples
from stages.lib.finetuning.tuning_config import PAPER_PROMPTS
from stages.pipeline import PIPELINE
from tests.support.evaluation_reports import collected, evaluation, score, toy
from tests.support.report_pages import HOSTILE, Page


def written(task: str, question: str, text: str, right: float = 1.0) -> dict[str, Any]:
    return {
        "task": task, "group": task, "suite": "table_6", "doc_id": 0, "doc": {"question": question}, "target": "4",
        "requests": [[f"Q: {question}", "{}"]], "scores": [text], "exact_match": right,
    }  # fmt: skip


def chosen(question: str, likelihoods: list[float]) -> dict[str, Any]:
    requests = [[f"Q: {question}", f" choice {number}"] for number in range(len(likelihoods))]
    scores = [[value, False] for value in likelihoods]
    return {
        "task": "piqa", "group": "piqa", "suite": "table_2", "doc_id": 0, "doc": {"goal": question}, "target": 1,
        "requests": requests, "scores": scores, "acc": 0.0, "acc_norm": 1.0,
    }  # fmt: skip


def data(original: list[dict[str, Any]], enhanced: list[dict[str, Any]], kind: Any = score) -> dict[str, Any]:
    reports: dict[str, Any] = {
        "evaluate_original": evaluation("pretrain_2", kind("table_2", "PIQA", 0.5)),
        "evaluate_enhanced": evaluation("pretrain_3", kind("table_2", "PIQA", 0.5)),
    }
    results = collected(reports, tuple(node.name for node in PIPELINE if node.name not in reports))
    for node in results["nodes"]:
        node["samples"] = {"evaluate_original": original, "evaluate_enhanced": enhanced}.get(node["name"], [])
        node["samples_left_out"] = []
    return results


def test_only_the_same_document_is_set_side_by_side_and_words_come_first() -> None:
    prompts = samples.side_by_side(
        data(
            [chosen("How?", [-3.0, -1.0]), written("gsm8k", "2 + 2?", "4"), written("gsm8k", "alone?", "yes")],
            [chosen("How?", [-1.0, -3.0]), written("gsm8k", "2 + 2?", "5", 0.0), written("gsm8k", "other?", "no")],
        )
    )
    assert [prompt["task"] for prompt in prompts] == ["gsm8k", "piqa"]
    assert prompts[0]["answers"] == {"Original": ("4", True), "Enhanced": ("5", False)}
    assert prompts[0]["target"] == "4"
    assert prompts[1]["target"] == "choice 1"  # the data say its number
    assert prompts[1]["answers"] == {"Original": ("choice 1", False), "Enhanced": ("choice 0", False)}


def test_questions_about_images_are_not_among_them() -> None:
    visual = {"benchmark": "toy-gqa", "id": "0", "image": "n0.jpg", "question": "What?", "answer": "a", "score": 1.0}
    assert samples.side_by_side(data([visual], [visual])) == []


def test_the_papers_own_prompts_come_first_with_what_every_tuned_model_said() -> None:
    results = data([], [])
    for node in results["nodes"]:
        if node["name"] in ("sft_tulu", "dpo_tulu"):
            row = {"prompt": f"user: {PAPER_PROMPTS[1]}", "before": "?", "after": f"It scales ({node['name']})."}
            node["result"] = {**(node["result"] or {}), "stats": {"samples": [{"prompt": "user: 1 + 1?"}, row]}}
    (prompt,) = samples.printed(results)
    assert prompt["prompt"] == PAPER_PROMPTS[1]
    assert prompt["answers"] == {"SFT": ("It scales (sft_tulu).", None), "DPO": ("It scales (dpo_tulu).", None)}
    section = samples.section(results)
    assert section is not None
    assert "It scales (dpo_tulu)." in section.body


def test_choices_that_stand_before_what_is_scored_are_shown_whole() -> None:
    row = chosen("x", [-3.0, -1.0]) | {"requests": [["The cat", " sleeps."], ["The cow", " sleeps."]], "target": 0}
    prompts = samples.side_by_side(data([row], [row]))
    assert prompts[0]["prompt"] == "The "
    assert prompts[0]["target"] == "cat sleeps."
    assert prompts[0]["answers"]["Original"] == ("cow sleeps.", False)


def test_another_prompt_for_the_same_document_is_another_question() -> None:
    row = chosen("How?", [-3.0, -1.0])
    other = row | {"requests": [[f"An example first. {context}", choice] for context, choice in row["requests"]]}
    assert samples.side_by_side(data([row], [other])) == []


def test_toy_documents_are_named_so() -> None:
    rows = [chosen("How?", [-3.0, -1.0])]
    assert [prompt["task"] for prompt in samples.side_by_side(data(rows, rows, toy))] == ["toy-piqa"]


def test_the_section_shows_each_task_once_and_hostile_text_stays_text() -> None:
    rows = [written("gsm8k", HOSTILE, HOSTILE), written("gsm8k", "second", "x"), written("math", "third", "y")]
    section = samples.section(data(rows, rows))
    assert section is not None
    page = Page(str(section.body))
    assert not page.tags() & {"script", "img"}
    assert page.text.count(HOSTILE) == 3
    assert "second" not in page.text
    assert "third" in page.text


def test_without_a_shared_document_there_is_no_section() -> None:
    assert samples.section(data([written("gsm8k", "a", "x")], [written("gsm8k", "b", "x")])) is None


def test_an_answer_that_has_no_score_is_empty() -> None:
    assert samples.answer({"requests": [], "scores": []}) == ""
    assert samples.answer({"requests": [["q", " a"], ["q", " b"]], "scores": [-2.0, -1.0]}) == "b"


def test_what_was_too_large_is_named() -> None:
    rows = [written("gsm8k", "a", "x")]
    results = data(rows, rows)
    results["nodes"][0]["samples_left_out"] = ["evaluate_x.report/samples/a.b.jsonl"]
    section = samples.section(results)
    assert section is not None
    assert "Too large to be read here: evaluate_x.report/samples/a.b.jsonl." in section.body
