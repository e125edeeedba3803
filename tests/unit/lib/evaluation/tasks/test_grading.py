"""Answers of this project's own tasks."""

from __future__ import annotations

import json

import pytest

from stages.lib.evaluation.tasks import grading


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("27", "so it is $\\boxed{27}$.", True),
        ("27.0", "\\boxed{27}", True),
        ("\\frac{1}{2}", "first \\boxed{3}, then \\boxed{0.5}", True),
        ("27", "<think>\\boxed{27}</think> \\boxed{28}", False),
        ("1234", "no box, but 1,234", True),
        ("27", "first 27, then 28", False),
        ("27", "no number at all", False),
        ("27", "", False),
        ("x+1", "\\boxed{1+x}", True),
        pytest.param("7", "\\boxed{9^{9^{9^{9^{9}}}}}", False, marks=pytest.mark.slow),  # as long as it may take
    ],
)
def test_the_last_box_counts_and_without_one_the_last_number(answer: str, text: str, right: bool) -> None:
    assert grading.math_results({"answer": answer}, [text]) == {"math_verify": float(right)}


def test_the_reference_is_of_either_schema() -> None:
    assert grading.reference({"answer": " 4.5 "}) == "4.5"
    assert grading.reference({"final_answer": ["$2$", "$-3$"]}) == "2, -3"


@pytest.mark.parametrize(
    ("text", "right"),
    [("It is Paris.", True), ("paris", True), ("city of light", True), ("Par is", False), ("", False)],
)
def test_any_name_of_the_object_in_the_answer_is_right(text: str, right: bool) -> None:
    doc = {"possible_answers": json.dumps(["Paris", "City of Light"])}
    assert grading.popqa_results(doc, [text]) == {"exact_match": float(right)}
    assert grading.first_name(doc) == "Paris"
