"""Tasks as the harness's own index has them: what is found is what its task object would read."""

from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.core.errors import ConfigError
from stages.lib.evaluation import task_lookup
from stages.lib.evaluation.suite_file import TaskEntry, load, shipped

READ = task_lookup.read_harness
HARNESS = pytest.mark.slow  # all definitions of the harness: 12 CPU seconds where they were not read before


@HARNESS
def test_a_task_with_what_its_own_file_says() -> None:
    (found,) = task_lookup.describe("gsm8k")
    import lm_eval.tasks

    file = Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k.yaml"
    own: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert found["data_set"] == own["dataset_path"] == "openai/gsm8k"
    assert found["config"] == own["dataset_name"]
    assert found["splits"] == [own["training_split"], own["test_split"]]
    assert found["metric"] == own["metric_list"][0]["metric"]
    assert found["filter"] == own["filter_list"][0]["name"]
    assert found["num_fewshot"] == own["num_fewshot"]
    assert found["version"] == str(own["metadata"]["version"])
    assert found["execute"] is False


@HARNESS
def test_settings_that_come_through_an_include() -> None:
    (found,) = task_lookup.describe("bbh_cot_fewshot_navigate")
    assert (found["data_set"], found["config"], found["num_fewshot"]) == ("SaylorTwift/bbh", "navigate", 3)
    (plus,) = task_lookup.describe("humaneval_plus")
    assert plus["data_set"] == "evalplus/humanevalplus"
    assert plus["metric"] == "pass_at_k"
    assert plus["execute"] is True


@HARNESS
@pytest.mark.parametrize(
    ("group", "count", "data_set"),
    [
        ("bbh_cot_fewshot", 27, "SaylorTwift/bbh"),
        ("minerva_math", 7, "EleutherAI/hendrycks_math"),
        ("mmlu", 57, "cais/mmlu"),
        ("truthfulqa", 3, "truthfulqa/truthful_qa"),
    ],
)
def test_groups_and_tags_become_their_members(group: str, count: int, data_set: str) -> None:
    members = task_lookup.describe(group)
    assert len({member["task"] for member in members}) == len(members) == count
    assert {member["data_set"] for member in members} == {data_set}
    fields = ("task", "metric", "filter", "num_fewshot", "version", "execute")
    assert all(TaskEntry.model_validate({key: member[key] for key in fields}) for member in members)


@HARNESS
def test_every_name_of_the_index_is_answered_or_refused_in_one_line() -> None:
    refused = []
    for name in task_lookup.index():
        try:
            assert task_lookup.describe(name), name
        except ConfigError as error:
            refused.append(str(error))
    assert 0 < len(refused) < len(task_lookup.index()) / 50
    assert not [line for line in refused if "\n" in line]


@HARNESS
def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"has no task 'gsm8kk'; did you mean 'gsm8k' or "):
        task_lookup.describe("gsm8kk")
    with pytest.raises(ConfigError, match=r"has no task 'zzzzqqqq'$"):
        task_lookup.describe("zzzzqqqq")


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The index is not there yet, nor kept: where it would be kept. The harness has one definition."""
    monkeypatch.setattr(task_lookup, "_index", task_lookup._index.__wrapped__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(task_lookup, "read_harness", lambda: {"a": ["TASK", {"dataset_path": "x/a"}, []]})
    return tmp_path / "moxin" / task_lookup.KEPT


def test_without_the_harness_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, anew: Path) -> None:
    real, reading = builtins.__import__, task_lookup.read_harness

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("lm_eval"):
            raise ImportError(f"No module named '{name}'")
        return real(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(task_lookup, "read_harness", READ)
        patch.setattr(builtins, "__import__", refuse)
        with pytest.raises(ConfigError, match=r"cannot be imported here .*pip install 'moxin\[eval\]'$"):
            task_lookup.describe("gsm8k")
    assert task_lookup.read_harness is reading
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cannot be imported here \(No module named 'lm_eval'\): "):
        task_lookup.describe("gsm8k")


def test_what_was_read_is_kept_until_a_definition_changes(monkeypatch: pytest.MonkeyPatch, anew: Path) -> None:
    ours = anew.parent.parent / "ours"
    ours.mkdir()
    (ours / "a.yaml").write_text("task: a")
    monkeypatch.setattr(task_lookup, "OURS", ours)
    expected = {"a": task_lookup.Entry(task_lookup.Kind("TASK"), {"dataset_path": "x/a"}, ())}
    assert task_lookup._index() == expected
    with monkeypatch.context() as patch:
        patch.setattr(task_lookup, "read_harness", dict)
        assert task_lookup._index() == expected
        anew.write_text(anew.read_text()[:-9])
        assert task_lookup._index() == {}, "a file that is torn is none"
    (ours / "a.yaml").write_text("task: abc")
    assert task_lookup._index() == expected
    assert [path.name for path in anew.parent.iterdir()] == [task_lookup.KEPT]


def test_where_nothing_can_be_kept_it_is_read_each_time(monkeypatch: pytest.MonkeyPatch, anew: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert set(task_lookup._index()) == {"a"}
    assert not anew.exists()


@HARNESS
@pytest.mark.parametrize("name", [n for n in shipped() if load(n).harness == "lm-evaluation-harness"])
def test_the_harness_knows_the_tasks_of_the_shipped_suites(name: str) -> None:
    assert {entry.task for entry in load(name).tasks} <= set(task_lookup.index())
