from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stages.core.errors import InputError
from stages.lib.evaluation.harnesses import lmms_eval
from stages.lib.evaluation.harnesses.outcomes import Place
from stages.lib.evaluation.suite_file import load
from tests.support.harness_results import cut, recorded, suite

POPE = {"task": "pope"}


def test_its_own_results_become_scores(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "lmms-eval", "0.7.3")
    pope = lmms_eval.read(folder, suite("lmms-eval", "0.7.3", POPE))["pope"]
    assert pope.metrics["pope_accuracy"] == (pytest.approx(1 / 3), None)
    assert pope.metrics["pope_f1_score"] == (0.5, None)  # its own standard error there is the accuracy's: left out
    assert (pope.n, pope.n_total, pope.split, pope.version, pope.num_fewshot) == (3, 4, "test", "0.0", 0)
    assert pope.notes
    assert len(pope.samples) == 3


def test_a_file_cut_in_half_names_itself(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "lmms-eval", "0.7.3")
    path = cut(next((folder / "pope").glob("*_results.json")))
    with pytest.raises(InputError, match=f"^{path.name} is no whole JSON file"):
        lmms_eval.read(folder, suite("lmms-eval", "0.7.3", POPE))


def test_samples_that_were_lost_are_noticed(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "lmms-eval", "0.7.3")
    path = next((folder / "pope").glob("*_samples_*.jsonl"))
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="counts 3 documents, the samples of 'pope' are 1"):
        lmms_eval.read(folder, suite("lmms-eval", "0.7.3", POPE))


def test_a_missing_task_other_shots_and_another_version_are_said(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "lmms-eval", "0.7.3")
    with pytest.raises(InputError, match="has no result of task 'gqa' of suite mine; it has pope"):
        lmms_eval.read(folder, suite("lmms-eval", "0.7.3", {"task": "gqa"}))
    with pytest.raises(InputError, match=r"was asked with 0 shots, the suite says 2"):
        lmms_eval.read(folder, suite("lmms-eval", "0.7.3", {**POPE, "num_fewshot": 2}))
    with pytest.raises(InputError, match=r"lmms-eval 0.7.3 made these results, the suite declares 0.5.0"):
        lmms_eval.read(folder, suite("lmms-eval", "0.5.0", POPE))
    path = next((folder / "pope").glob("*_results.json"))
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "n-samples"}))
    with pytest.raises(InputError, match="has no usable 'n-samples': it was written by another version"):
        lmms_eval.read(folder, suite("lmms-eval", "0.7.3", POPE))


def test_commands_and_definitions_of_the_four_benchmarks(tmp_path: Path) -> None:
    place = Place("py", tmp_path / "model", tmp_path, tmp_path / "data", tmp_path / "out")
    commands = lmms_eval.commands(load("table_8_lmms_eval"), place)
    options = dict(zip(commands["pope"][3:], commands["pope"][4:], strict=False))
    assert options["--tasks"] == "pope_local"
    assert options["--device"] == "cpu"
    assert "--log_samples" in commands["pope"]
    (tmp_path / "lmms-lab" / "POPE").mkdir(parents=True)
    text = lmms_eval.definition("pope", Path("/package"), tmp_path)
    assert yaml.safe_load(text) == {
        "include": "/package/tasks/pope/pope.yaml",
        "task": "pope_local",
        "dataset_path": str(tmp_path / "lmms-lab" / "POPE"),
        "dataset_kwargs": {"token": False},
    }
    with pytest.raises(InputError, match="reads lmms-lab-encoder/VizWiz-VQA or lmms-lab/VizWiz-VQA"):
        lmms_eval.definition("vizwiz_vqa_val", Path("/package"), tmp_path)
