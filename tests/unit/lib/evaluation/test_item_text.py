"""The text of an item: question and right answer of the data sets we know, all strings of the others."""

from __future__ import annotations

from typing import Any

import pytest

from stages.lib.evaluation.item_text import item_mark, item_text, known_fields

ARC = {"question": "Which?", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "B", "id": "i7"}


@pytest.mark.parametrize(
    ("data_set", "row", "text"),
    [
        ("Rowan/hellaswag", {"ctx": "He", "endings": ["sits.", "runs."], "label": "1", "ind": 4}, "He\nruns."),
        ("Rowan/hellaswag", {"ctx": "He", "endings": ["sits.", "runs."], "label": ""}, "He"),
        (
            "allenai/winogrande",
            {"sentence": "So _ won.", "option1": "Ann", "option2": "Bob", "answer": "2"},
            "So Bob won.",
        ),
        (
            "allenai/winogrande",
            {"sentence": "So _ won.", "option1": "Ann", "option2": "Bob", "answer": ""},
            "So _ won.",
        ),
        ("baber/piqa", {"goal": "Open", "sol1": "pull", "sol2": "push", "label": 0}, "Open\npull"),
        ("baber/piqa", {"goal": "Open", "sol1": "pull", "sol2": "push", "label": -1}, "Open"),
        ("allenai/ai2_arc", ARC, "Which?\nblue"),
        ("allenai/ai2_arc", ARC | {"answerKey": "E"}, "Which?"),
        ("cais/mmlu", {"question": "Q", "choices": ["a", "b"], "answer": 0, "subject": "law"}, "Q\na"),
        ("math-ai/olympiadbench", {"context": None, "question": "Q", "solution": ["s1", "s2"]}, "Q\ns1\ns2"),
        ("truthfulqa/truthful_qa", {"question": "Q", "mc1_targets": {"choices": ["x"], "labels": [1]}}, "Q"),
        ("some/thing", {"a": "x", "n": 3, "b": ["y", ""], "c": {"d": "z", "e": b"no"}}, "x\ny\nz"),
        ("openai/gsm8k", {"other": "names", "than": "ours"}, "names\nours"),
    ],
)
def test_the_text_of_an_item(data_set: str, row: dict[str, Any], text: str) -> None:
    assert item_text(data_set, row) == text


def test_fields_are_written_in_one_way() -> None:
    for name, known in known_fields().items():
        assert set(known) <= {"question", "answer", "blank"}, name
        if not isinstance(known["answer"], str):
            assert set(known["answer"]) <= {"of", "at", "labels", "columns", "first"}, name


def test_a_mark_says_which_text_it_is() -> None:
    assert item_mark("a") == item_mark("a") != item_mark("b")
    assert len(item_mark("\ud800")) == 16
