"""What is kept of the harness's samples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from stages.evaluate import answers
from stages.lib.evaluation.suite_file import TaskEntry


def row(doc: int, chosen: str, programs: Any, **more: Any) -> dict[str, Any]:
    text = ("a question", {"until": [], "max_gen_toks": 8})
    return {
        "doc_id": doc, "doc": {"task_id": f"T/{doc}"}, "target": "check(f)", "filter": chosen, "arguments": [text],
        "filtered_resps": [programs], "resps": [["one", "two"]], "metrics": [], **more,
    }  # fmt: skip


def test_candidates_are_those_of_one_filter_in_order() -> None:
    rows = [row(0, "a", ["x", "y"]), row(1, "a", "z"), row(0, "b", ["q"]), row(1, "b", ["r"])]
    asked = [list(answers.candidates(TaskEntry(task="t", execute=True, filter=name), rows)) for name in (None, "b")]
    assert [[c.programs for c in found] for found in asked] == [[("x", "y"), ("z",)], [("q",), ("r",)]]
    assert [(c.doc, c.id, c.test) for c in asked[0]] == [(0, "T/0", "check(f)"), (1, "T/1", "check(f)")]


def test_a_sample_keeps_what_was_written_before_the_filter_too() -> None:
    kept = answers.sample("t", row(0, "strict", "7", metrics=["exact_match"], exact_match=1.0))
    assert (kept["scores"], kept["answers"], kept["filter"], kept["exact_match"]) == (
        ["7"],
        [["one", "two"]],
        "strict",
        1.0,
    )
    choice = row(0, "none", (-1.5, True), arguments=[("a", "b")])
    assert "answers" not in answers.sample("t", choice)
    assert answers.sample("t", choice)["scores"] == [[-1.5, True]]


def test_a_document_is_counted_once_whatever_its_filters() -> None:
    lm = SimpleNamespace(tok_encode=str.split, max_gen_toks=256, max_length=9)
    rows = [row(0, "a", "x"), row(0, "b", "x"), row(1, "a", "x", arguments=[("short", {"max_gen_toks": 8})])]
    assert answers.truncated(lm, rows) == 1
