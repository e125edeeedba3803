from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from flows import paper
from stages.core.errors import ConfigError
from stages.lib.evaluation.suite_file import Suite, load, shipped


class Holder(BaseModel):
    model_config = ConfigDict(frozen=True)
    suites: tuple[Suite, ...]


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_suite_fills_columns_of_the_papers_table_in_its_order(name: str) -> None:
    suite = load(name)
    assert suite.table is not None
    printed = paper.tables()[suite.table]
    columns = [entry.column for entry in suite.tasks]
    assert columns == [column for column in printed.columns if column in columns]
    shots = {entry.column: entry.num_fewshot for entry in suite.tasks}
    whole = suite.harness == "lm-evaluation-harness"  # the other harnesses have some of a table's columns
    expected = {column: count for column, count in printed.shots.items() if whole or column in shots}
    assert not expected or shots == expected


def test_a_configuration_holds_the_content_of_what_it_names() -> None:
    held = Holder.model_validate({"suites": ["table_2", {"base": "table_3", "limit": 60, "only": ["mmlu"]}]})
    assert held.suites[0] == load("table_2")
    [mmlu] = held.suites[1].tasks
    assert (mmlu.task, mmlu.limit, mmlu.num_fewshot, mmlu.column) == ("mmlu", 60, 5, "MMLU")
    assert Holder.model_validate_json(held.model_dump_json()) == held


def test_changes_of_single_tasks_are_laid_over_the_base() -> None:
    change = {"base": "table_3", "tasks": {"arc_challenge": {"num_fewshot": 3, "limit": 9}}}
    suite = Suite.model_validate(change)
    assert [entry.num_fewshot for entry in suite.tasks] == [3, 10, 5, 5]
    assert [entry.limit for entry in suite.tasks] == [9, None, None, None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("table_22", "there is no suite 'table_22'; did you mean 'table_2'?"),
        ("mine.toml", "suite file mine.toml is not there"),
    ],
)
def test_a_name_that_leads_nowhere_is_said(given: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(given)
    assert message in str(error.value)


def test_a_change_that_would_be_lost_is_refused() -> None:
    with pytest.raises(ValidationError, match="suite table_2 has no task piqua; it has hellaswag"):
        Suite.model_validate({"base": "table_2", "tasks": {"piqua": {"limit": 1}}})
    with pytest.raises(ValidationError, match="not shots"):
        Suite.model_validate({"base": "table_2", "shots": 1})


def test_a_users_file_is_read_and_a_mistake_in_it_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[tasks]]\ntask = "gsm8k"\nnum_fewshot = 5\n')
    assert load(str(path)).name == "mine"
    path.write_text('[[tasks]]\ntask = "gsm8k"\nshots = 5\n')
    with pytest.raises(ConfigError, match=r"suite file mine.toml: tasks.0.shots: Extra inputs"):
        load(str(path))
