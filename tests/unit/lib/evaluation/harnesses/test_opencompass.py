from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import ConfigError, InputError
from stages.lib.evaluation.harnesses import opencompass
from stages.lib.evaluation.harnesses.outcomes import Place
from stages.lib.evaluation.suite_file import load
from tests.support.harness_results import cut, recorded, suite

GSM, PIQA = {"task": "gsm8k_gen", "version": "1d7fe4"}, {"task": "piqa_ppl", "version": "1cf9f0"}


def result(folder: Path, name: str) -> Path:
    return next(folder.glob(f"*/results/*/{name}.json"))


def test_its_own_results_become_fractions(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "opencompass", "0.5.4")
    outcomes = opencompass.read(folder, suite("opencompass", "0.5.4", GSM, PIQA))
    piqa, gsm = outcomes["piqa_ppl"], outcomes["gsm8k_gen"]
    assert piqa.metrics == {"accuracy": (pytest.approx(2 / 3), pytest.approx(1 / 3))}
    assert (piqa.n, piqa.data_set, piqa.split, piqa.version) == (3, "baber/piqa", "validation", "1cf9f0")
    assert gsm.metrics["accuracy"][0] == 0
    assert gsm.n == 3
    assert gsm.version == "1d7fe4"
    assert [s["correct"] for s in piqa.samples] == [1, 0, 1]


def test_a_file_cut_in_half_names_itself(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "opencompass", "0.5.4")
    cut(result(folder, "piqa"))
    with pytest.raises(InputError, match=r"^piqa.json is no whole JSON file"):
        opencompass.read(folder, suite("opencompass", "0.5.4", PIQA))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"error": "no such file"}, "piqa.json: opencompass could not score task 'piqa_ppl': no such file"),
        ({"accuracy": 50.0}, "piqa.json has no 'details' of its documents"),
        ({"bp": 1.0, "details": [{"correct": True}]}, "piqa.json has no number that is a metric"),
        ({"accuracy": 350.0, "details": [{"correct": True}]}, "'accuracy' is 350.0, no score from 0 to 100"),
        ({"accuracy": 50.0, "details": [{"correct": "yes"}]}, "a document's 'correct' is 'yes'"),
    ],
)
def test_a_result_without_a_usable_score_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    folder = recorded(tmp_path, "opencompass", "0.5.4")
    result(folder, "piqa").write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        opencompass.read(folder, suite("opencompass", "0.5.4", PIQA))
    assert message in str(error.value)


def test_a_missing_task_another_version_and_another_prompt_are_said(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "opencompass", "0.5.4")
    with pytest.raises(
        InputError, match="has no result of task 'siqa_ppl' of suite mine; it has gsm8k, piqa, winogrande"
    ):
        opencompass.read(folder, suite("opencompass", "0.5.4", {"task": "siqa_ppl"}))
    with pytest.raises(InputError, match=r"^environment.json: opencompass 0.5.4 made these results.*declares 0.4.2"):
        opencompass.read(folder, suite("opencompass", "0.4.2", PIQA))
    with pytest.raises(InputError, match="its prompt is 1cf9f0, the suite says 0cfff2"):
        opencompass.read(folder, suite("opencompass", "0.5.4", {"task": "piqa_ppl", "version": "0cfff2"}))


def test_a_summary_that_was_cut_is_said(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "opencompass", "0.5.4")
    path = next(folder.glob("*/summary/*.csv"))
    path.write_text("dataset,version\ngsm8k")
    with pytest.raises(InputError, match=f"^{path.name} has no column 'version' in every row"):
        opencompass.read(folder, suite("opencompass", "0.5.4", PIQA))


def test_a_run_is_one_command_of_all_tasks(tmp_path: Path) -> None:
    place = Place("py", tmp_path / "model", tmp_path, tmp_path / "data", tmp_path / "out", batch_size=4)
    [words] = opencompass.commands(load("table_2_opencompass"), place).values()
    assert words[:6] == ["py", "-m", "opencompass.cli.main", "--datasets", "winogrande_ll", "piqa_ppl"]
    options = dict(itertools.pairwise(words))
    assert options["--hf-type"] == "base"
    assert options["--hf-num-gpus"] == "0"
    assert options["--batch-size"] == "4"
    assert opencompass.environment(place)["COMPASS_DATA_CACHE"] == str(tmp_path / "data")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([{"task": "gsm8k"}], "is no configuration of opencompass"),
        ([{"task": "gsm8k_gen"}, {"task": "gsm8k_gen_1d7fe4"}], "asks gsm8k twice"),
        ([{"task": "gsm8k_gen", "limit": 3}], "has no option for limit"),
        ([{"task": "gsm8k_gen", "chat_template": True}, {"task": "piqa_ppl"}], "with one chat_template"),
    ],
)
def test_what_it_cannot_be_asked_is_refused(tmp_path: Path, tasks: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opencompass.commands(suite("opencompass", "0.5.4", *tasks), Place("py", tmp_path, tmp_path, tmp_path, tmp_path))


def test_data_are_written_in_its_form(tmp_path: Path) -> None:
    place = Place("py", tmp_path, tmp_path, tmp_path, tmp_path)
    row = {"goal": "hold pens", "sol1": "a cup", "sol2": "a sieve", "label": 0}
    blank = {"sentence": "The _ is small.", "option1": "cup", "option2": "box", "answer": "1"}
    rows = {"piqa_ppl": {"train": [row], "validation": [row]}, "winogrande_ll": {"validation": [blank]}}
    opencompass.prepare(suite("opencompass", "0.5.4", PIQA, {"task": "winogrande_ll"}), rows, place)
    assert json.loads((tmp_path / "data/piqa/dev.jsonl").read_text()) == {
        "id": "0",
        "goal": "hold pens",
        "sol1": "a cup",
        "sol2": "a sieve",
    }
    assert (tmp_path / "data/piqa/dev-labels.lst").read_text() == "0\n"
    assert (tmp_path / "data/piqa/train.jsonl").is_file()
    assert json.loads((tmp_path / "data/winogrande/dev.jsonl").read_text()) == blank
