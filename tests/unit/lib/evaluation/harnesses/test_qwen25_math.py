from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import ConfigError, InputError
from stages.lib.evaluation.harnesses import qwen25_math
from stages.lib.evaluation.harnesses.outcomes import Place
from stages.lib.evaluation.suite_file import load
from tests.support.harness_results import cut, recorded, suite

AMC = {"task": "amc23", "chat_template": True}
MATH = {"task": "math", "chat_template": True}


def read(folder: Path, *tasks: dict[str, Any]) -> dict[str, Any]:
    return dict(qwen25_math.read(folder, suite("qwen25-math", qwen25_math.COMMIT, *tasks)))


def test_its_own_results_become_exact_scores(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "qwen25-math", qwen25_math.COMMIT)
    outcomes = qwen25_math.read(folder, suite("qwen25-math", qwen25_math.COMMIT, AMC, MATH))
    amc = outcomes["amc23"]
    assert amc.metrics == {"pass@1": (0.25, pytest.approx(0.25))}  # one of four: the sample's error is sqrt(0.1875/3)
    assert (amc.n, amc.data_set, amc.split) == (4, "math-ai/amc23", "test")
    assert [s["score"] for s in amc.samples] == [[False], [False], [True], [False]]
    assert outcomes["math"].metrics["pass@1"][0] == 0
    assert outcomes["math"].n == 3


def test_a_file_cut_in_half_names_itself(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "qwen25-math", qwen25_math.COMMIT)
    path = cut(next((folder / "amc23").glob("*_metrics.json")))
    with pytest.raises(InputError, match=f"^{path.name} is no whole JSON file"):
        read(folder, AMC)
    folder = recorded(tmp_path / "again", "qwen25-math", qwen25_math.COMMIT)
    path = cut(next((folder / "amc23").glob("*.jsonl")))
    with pytest.raises(InputError, match=rf"^{path.name}, line 3 is no whole JSON"):
        read(folder, AMC)


def test_answers_that_were_lost_are_noticed(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "qwen25-math", qwen25_math.COMMIT)
    path = next((folder / "amc23").glob("*.jsonl"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(InputError, match="counts 4 questions, its file of answers has 3"):
        read(folder, AMC)


def test_a_score_that_its_answers_do_not_have_is_noticed(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "qwen25-math", qwen25_math.COMMIT)
    path = next((folder / "amc23").glob("*_metrics.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"acc": 50.0}))
    with pytest.raises(InputError, match=r"says acc 50.0, its answers score 25.00"):
        read(folder, AMC)


def test_a_missing_task_and_another_version_are_said(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "qwen25-math", qwen25_math.COMMIT)
    with pytest.raises(InputError, match="has no result of task 'minerva_math' of suite mine; it has amc23, math"):
        read(folder, {"task": "minerva_math", "chat_template": True})
    with pytest.raises(InputError, match=r"^environment.json: qwen25-math a4520.* made these results.*declares 123"):
        qwen25_math.read(folder, suite("qwen25-math", "123", AMC))


def test_a_result_of_another_form_is_of_another_version(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "qwen25-math", qwen25_math.COMMIT)
    path = next((folder / "amc23").glob("*_metrics.json"))
    path.write_text(json.dumps({"accuracy": 25.0}))
    with pytest.raises(InputError, match="has no usable 'num_samples': it was written by another version"):
        read(folder, AMC)


def test_table_7_is_asked_as_its_suite_says(tmp_path: Path) -> None:
    place = Place("py", tmp_path / "model", tmp_path, tmp_path / "data", tmp_path / "out", gpus=2, vllm=True)
    commands = qwen25_math.commands(load("table_7"), place)
    assert list(commands) == ["math", "amc23", "minerva_math", "olympiadbench"]
    words = commands["amc23"]
    assert words[:3] == ["py", str(qwen25_math.PROGRAM), str(tmp_path / "out" / "files.json")]
    options = dict(itertools.pairwise(words))
    assert options["--temperature"] == "0"
    assert options["--max_tokens_per_call"] == "32768"
    assert options["--prompt_type"] == "mathstral"
    assert {"--apply_chat_template", "--use_vllm"} < set(words)
    assert qwen25_math.environment(place) == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_examples_through_a_chat_template_are_refused(tmp_path: Path) -> None:
    place = Place("py", tmp_path, tmp_path, tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="num_fewshot = 0"):
        qwen25_math.commands(suite("qwen25-math", "1", {**AMC, "num_fewshot": 4}), place)


def test_questions_are_written_in_its_form(tmp_path: Path) -> None:
    place = Place("py", tmp_path, tmp_path, tmp_path / "data", tmp_path)
    asked = suite("qwen25-math", "1", {"task": "minerva_math"}, {"task": "amc23"})
    rows = {
        "minerva_math": [{"question": "How far?", "answer": "3\\pi"}],
        "amc23": [{"question": "How many?", "answer": 4.0, "id": 7}],
    }
    qwen25_math.prepare(asked, rows, place)
    text = (tmp_path / "data" / "minerva_math" / "test.jsonl").read_text()
    assert json.loads(text) == {"problem": "How far?", "solution": "$\\boxed{3\\pi}$"}
    assert json.loads((tmp_path / "data" / "amc23" / "test.jsonl").read_text())["answer"] == 4.0
    shown = {"question": "?", "final_answer": ["2"], "image_1": {"bytes": b"png"}}
    assert qwen25_math.row("olympiadbench", shown) == {"question": "?", "final_answer": ["2"]}
    with pytest.raises(InputError, match="a row of its data set has no final_answer"):
        qwen25_math.row("olympiadbench", {"question": "?", "final_answer": None})
