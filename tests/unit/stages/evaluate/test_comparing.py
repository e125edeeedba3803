"""Why a score may not stand beside the paper's: one reason for each thing that differs, and none when nothing does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stages.evaluate.comparing import Facts, reasons
from stages.lib.evaluation.suite_file import Suite, load

SAME = Facts(
    harness_version="0.4.13",
    task_version="1.0",
    n=100,
    n_total=100,
    synthetic=False,
    truncated=0,
    joined=0,
    absent=(0, 1),
    fingerprint="a" * 64,
    stored="float32",
    dtype="float16",
)


def entry_of(suite: Suite, task: str) -> Any:
    return next(entry for entry in suite.tasks if entry.task == task)


@pytest.mark.parametrize("name", ["table_2", "table_3", "table_4", "table_5"])
def test_a_shipped_suite_on_the_data_set_itself_is_comparable(name: str) -> None:
    suite = load(name)
    assert {entry.task: reasons(suite, entry, SAME) for entry in suite.tasks} == {e.task: [] for e in suite.tasks}


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        ({"synthetic": True}, "the data set was made from this run's own documents"),
        ({"n": 60}, "60 of 100 documents"),
        ({"absent": (55, 57)}, "2 of 57 tasks of the group"),
        ({"truncated": 3}, "3 requests were longer than the context and lost their beginning"),
        ({"joined": 2}, "2 answers were encoded apart from their questions: a piece of the vocabulary spans both"),
        ({"stored": "bfloat16"}, "scored in float16, the weights are bfloat16"),
    ],
)
def test_each_fact_is_a_reason_of_its_own(fact: dict[str, Any], reason: str) -> None:
    suite = load("table_3")
    assert reasons(suite, entry_of(suite, "mmlu"), replace(SAME, **fact)) == [reason]
    assert "; " not in reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_fewshot": 2}, "2 shots, Table 3 has 5"),
        ({"chat_template": True}, "asked through a chat template, Table 3 without a chat template"),
        (
            {"chat_template": True, "system": "Answer."},
            "asked through a chat template with a system message, Table 3 without a chat template",
        ),
        ({"metric": "acc_norm"}, "metric acc_norm, Table 3 acc"),
        ({"max_new_tokens": 8}, "max_new_tokens 8, Table 3 as the task says"),
        ({"version": "0"}, "version 1.0 of the task, the suite is of 0"),
        ({"fingerprint": "b" * 64}, "its questions have the fingerprint aaaaaaaaaaaa, not bbbbbbbbbbbb"),
    ],
)
def test_what_a_configuration_changes_is_said(changes: dict[str, Any], reason: str) -> None:
    suite = Suite.model_validate({"base": "table_3", "name": "mine", "tasks": {"mmlu": changes}})
    assert reasons(suite, entry_of(suite, "mmlu"), SAME) == [reason]
    assert reasons(suite, entry_of(suite, "hellaswag"), SAME) == []


def test_another_harness_than_the_papers_is_said() -> None:
    suite = load("table_7_lm_eval")
    said = reasons(suite, suite.tasks[0], SAME)
    assert said[0] == "Table 7 was scored by qwen25-math, this by lm-evaluation-harness"
    dated = Suite.model_validate(load("table_2").model_dump() | {"harness_version": "0.4.0"})
    assert reasons(dated, dated.tasks[0], SAME) == ["lm-evaluation-harness 0.4.13, the suite is of 0.4.0"]


def test_a_suite_of_ones_own_repeats_no_table() -> None:
    suite = Suite.model_validate({"name": "mine", "tasks": [{"task": "gsm8k"}]})
    assert reasons(suite, suite.tasks[0], SAME) == ["the suite repeats no table of the paper"]
    other = Suite.model_validate({"name": "mine", "table": "table_2", "tasks": [{"task": "gsm8k"}]})
    assert reasons(other, other.tasks[0], SAME) == ["task gsm8k is none of Table 2"]
