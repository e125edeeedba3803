"""`moxin suite`: tasks from the harness's own index into a user's file, data sets pinned from hub, folder and store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import suite_files
from stages.benchmarks import toy
from stages.benchmarks.spec import Benchmarks, BenchmarksConfig, DataSetSource
from stages.core.errors import ConfigError
from stages.core.preflight import PreflightContext
from stages.lib.evaluation.suite_file import TaskEntry, load
from stages.lib.formats.suites import data_set_sha256, split_fingerprints, write_data_set
from tests.support.limits import HANG
from tests.support.loopback_hub import Hub, Repository
from tests.support.paths import ROOT

COMMIT = "e53f048856ff4f594e959d75785d2c2d37b678ee"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    names = ("openai/gsm8k", "truthfulqa/truthful_qa", "EleutherAI/hendrycks_math")
    with Hub({name: Repository(COMMIT, {"README.md": b""}) for name in names}) as server:
        yield server


def moxin(folder: Path, hub: Hub | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / "home")}
    environment = hub.environment(folder / "home") if hub else os.environ | away
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "suite", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )


def configured(toml: str) -> BenchmarksConfig:
    """What a profile with these lines gives the node."""
    return BenchmarksConfig.model_validate(tomllib.loads(toml)["node"]["benchmarks"])


@pytest.mark.slow
def test_a_task_is_added_once_with_its_data_set_pinned(hub: Hub, tmp_path: Path) -> None:
    done = moxin(tmp_path, hub, "add", "gsm8k", "truthfulqa", "humaneval", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["added"] == ["gsm8k", "truthfulqa_gen", "truthfulqa_mc1", "truthfulqa_mc2", "humaneval"]
    assert hub.strange == []
    suite = load(str(tmp_path / "my_suite.toml"))
    assert [entry.task for entry in suite.tasks] == answer["added"]
    assert suite.harness_version == "0.4.13"
    assert suite.tasks[0] == TaskEntry(
        task="gsm8k", metric="exact_match", filter="strict-match", num_fewshot=5, version="3.0"
    )
    config = configured("\n".join(row["toml"] for row in answer["data_sets"].values()))
    assert config.data_sets == {
        "openai/gsm8k": DataSetSource(revision=COMMIT, configs=("main",), splits=("train", "test")),
        "truthfulqa/truthful_qa": DataSetSource(
            revision=COMMIT, configs=("generation", "multiple_choice"), splits=("validation",)
        ),
        "openai/openai_humaneval": DataSetSource(origin="package", revision="1.0.3"),
    }
    assert list(Benchmarks(name="benchmarks").preflight(config, PreflightContext())) == []

    before = (tmp_path / "my_suite.toml").read_bytes()
    again = json.loads(moxin(tmp_path, hub, "add", "gsm8k", "--json").stdout)
    assert (again["added"], again["written"]) == ([], False)
    assert (tmp_path / "my_suite.toml").read_bytes() == before
    planned = moxin(tmp_path, hub, "add", "hendrycks_math_algebra", "--dry-run")
    assert "would add hendrycks_math_algebra" in planned.stdout
    assert (tmp_path / "my_suite.toml").read_bytes() == before
    shown = moxin(tmp_path, None, "show", "my_suite.toml")
    assert "gsm8k: metric exact_match, filter strict-match, num_fewshot 5" in shown.stdout


@pytest.mark.slow
def test_without_the_hub_a_plan_says_what_is_missing(tmp_path: Path) -> None:
    done = moxin(tmp_path, None, "add", "gsm8k", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["data_sets"].values()
    assert row["problem"].startswith("its commit could not be asked of the hub")
    (problem,) = Benchmarks(name="benchmarks").preflight(configured(row["toml"]), PreflightContext())
    assert problem.line("benchmarks").startswith(
        'benchmarks.data_sets."openai/gsm8k".revision = unknown: openai/gsm8k is not pinned'
    )


@pytest.mark.slow
def test_a_folder_gives_its_sha256(tmp_path: Path) -> None:
    tables = toy.make("", "openai/gsm8k", DataSetSource(origin="machine"), BenchmarksConfig())
    write_data_set(tmp_path / "mirror", "openai/gsm8k", tables)
    for place in ("mirror", "mirror/openai/gsm8k"):
        done = moxin(tmp_path, None, "add", "gsm8k", "--from", place, "--json")
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)["data_sets"].values()
        source = configured(row["toml"]).data_sets["openai/gsm8k"]
        assert source.sha256 == data_set_sha256(split_fingerprints(tables))
        assert source.uri == str(tmp_path / "mirror" / "openai" / "gsm8k")
        assert list(Benchmarks(name="b").preflight(configured(row["toml"]), PreflightContext())) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("add", "gsm8kk"), "has no task 'gsm8kk'; did you mean 'gsm8k'"),
        (("add", "gsm8k", "--harness", "olmes"), "--harness olmes: only lm-evaluation-harness has an index of tasks"),
        (("add", "gsm8k", "--from", "/none"), "--from /none: no such folder"),
        (("add", "gsm8k", "--file", "suite.yaml"), "--file suite.yaml: a suite file ends in .toml"),
        (("show", "table_33"), "there is no suite 'table_33'; did you mean 'table_3'?"),
        (("show", "none.toml"), "suite file none.toml is not there"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    done = moxin(tmp_path, None, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.toml"))


def test_the_shipped_suites_are_listed(tmp_path: Path) -> None:
    rows = json.loads(moxin(tmp_path, None, "list", "--json").stdout)
    assert {"table_2", "table_3"} <= {row["name"] for row in rows}
    assert all(row["tasks"] > 0 for row in rows)


# --- the file, without programs ---------------------------------------------------------------------------------------


def looked_up(*names: str) -> list[suite_files.LookedUp]:
    return [suite_files.LookedUp(TaskEntry(task=name), "a/b", None, ("test",), "0.4.13") for name in names]


def test_what_a_person_wrote_stays(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    own = 'title = "Mine"   # a word of my own\n\n[[tasks]]\ntask = "a"\nlimit = 7\n'
    file.write_text(own, encoding="utf-8")
    text, added = suite_files.extended(file, looked_up("a", "b"))
    assert added == ["b"]
    assert text.startswith(own.rstrip("\n"))
    suite_files.write(file, text)
    assert [(entry.task, entry.limit) for entry in load(str(file)).tasks] == [("a", 7), ("b", None)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("tasks = [", r"mine\.toml: Invalid value"),
        ("[[tasks]]\ntask = 'a'\nshots = 3\n", r"mine\.toml: tasks\.0\.shots: Extra inputs are not permitted"),
        ('harness = "olmes"\n[[tasks]]\ntask = "a"\n', r"mine\.toml is a suite of olmes, not of lm-evaluation-harness"),
        ('tasks = [{ task = "a" }]\n', r"mine\.toml: "),
    ],
)
def test_a_file_that_cannot_be_extended_stays_as_it_is(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=line) as error:
        suite_files.extended(file, looked_up("b"))
    assert "\n" not in str(error.value)
    assert file.read_text(encoding="utf-8") == text


def test_an_interrupt_while_the_data_is_asked_for_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.cli import suite

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite_files, "look_up", lambda names, harness: looked_up("a"))
    monkeypatch.setattr(suite_files, "needed_data_sets", interrupt)
    with pytest.raises(KeyboardInterrupt):
        suite.add(["a"], file=tmp_path / "mine.toml")
    assert not list(tmp_path.iterdir())


def test_tasks_that_read_other_splits_ask_for_all() -> None:
    one, other = looked_up("a", "b")
    both = [one, suite_files.LookedUp(other.entry, "a/b", "x", ("train",), "0.4.13")]
    assert suite_files._chosen(both) == {"configs": None, "splits": None}
    assert suite_files._chosen([both[1]]) == {"configs": ("x",), "splits": ("train",)}
