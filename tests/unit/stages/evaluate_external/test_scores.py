from __future__ import annotations

from dataclasses import replace

import pytest

from stages.core.errors import InputError
from stages.evaluate_external.scores import Held, held, rows
from stages.lib.evaluation.harnesses.outcomes import Outcome
from stages.lib.evaluation.suite_file import Suite
from stages.lib.formats.reports import Score
from stages.lib.formats.suites import DataSet

SUITE = Suite.model_validate({"base": "table_7", "only": ["amc23"]})
AMC = DataSet(
    id="math-ai/amc23", origin="hub", rows={"default": {"test": 40}}, fingerprint={"default": {"test": "a" * 64}}
)
SAID = Outcome(metrics={"pass@1": (0.575, 0.079)}, n=40, data_set="math-ai/amc23", split="test")


def one(suite: Suite, outcome: Outcome, data: Held | None, trained_on: tuple[str, ...] = ()) -> Score:
    [score] = rows(suite, {"amc23": outcome}, {"amc23": data} if data else {}, trained_on)
    return score


def test_the_paper_s_own_suite_on_the_whole_data_set_is_comparable() -> None:
    score = one(SUITE, SAID, held(AMC, None, "test"))
    assert (score.comparable_to_paper, score.note, score.in_domain) == (True, "", False)
    assert (score.data_fingerprint, score.n_total, score.column) == ("a" * 64, 40, "AMC 2023")
    assert one(SUITE, SAID, held(AMC, None, "test"), ("amc23",)).in_domain


@pytest.mark.parametrize(
    ("suite", "outcome", "data", "note"),
    [
        (SUITE, SAID, None, "its data set is not one of the mirrors that were wired"),
        (SUITE, replace(SAID, n=20), held(AMC, None, "test"), "20 of 40 documents"),
        (SUITE, replace(SAID, notes=("3 answers were late",)), held(AMC, None, "test"), "3 answers were late"),
        (
            Suite.model_validate({"base": "table_7", "only": ["amc23"], "tasks": {"amc23": {"temperature": 0.6}}}),
            SAID,
            held(AMC, None, "test"),
            "temperature 0.6, Table 7 has None",
        ),
        (
            Suite.model_validate({"base": "table_7", "only": ["amc23"], "tasks": {"amc23": {"fingerprint": "b" * 64}}}),
            SAID,
            held(AMC, None, "test"),
            "its questions have the fingerprint aaaaaaaaaaaa, not bbbbbbbbbbbb",
        ),
    ],
)
def test_each_difference_is_a_reason(suite: Suite, outcome: Outcome, data: Held | None, note: str) -> None:
    score = one(suite, outcome, data)
    assert (score.comparable_to_paper, score.note) == (False, note)


def test_a_metric_that_is_not_there_is_told() -> None:
    changed = Suite.model_validate({"base": "table_7", "only": ["amc23"], "tasks": {"amc23": {"metric": "acc"}}})
    with pytest.raises(InputError, match="task amc23: there is no metric 'acc'; qwen25-math gives pass@1"):
        one(changed, SAID, held(AMC, None, "test"))


def test_a_group_has_the_documents_of_all_its_configurations() -> None:
    group = DataSet(
        id="cais/mmlu",
        origin="hub",
        rows={"a": {"test": 3}, "b": {"test": 4}, "c": {"dev": 5}},
        fingerprint={"a": {"test": "1"}, "b": {"test": "2"}},
    )
    both = held(group, None, "test")
    assert both.rows == 7
    assert both.sha256
    assert held(group, "a", "test").sha256 == "1"
    assert held(DataSet(id="x", origin="hub", rows={"a": {"test": 3}}), "a", "test").sha256 is None
