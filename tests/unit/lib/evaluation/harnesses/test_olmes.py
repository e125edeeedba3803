from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.core.errors import InputError
from stages.lib.evaluation.harnesses import olmes
from stages.lib.evaluation.harnesses.outcomes import Place
from stages.lib.evaluation.suite_file import load
from tests.support.harness_results import cut, recorded, suite

GSM = {"task": "gsm8k::tulu", "num_fewshot": 8}
BBH = {"task": "bbh:cot-v1::tulu", "num_fewshot": 3}


def test_a_task_has_its_primary_metric_first(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "olmes", "0.1.0")
    gsm = olmes.read(folder, suite("olmes", "0.1.0", GSM))["gsm8k::tulu"]
    assert gsm.metrics == {"exact_match": (0.5, pytest.approx(0.288675, abs=1e-6))}
    assert (gsm.n, gsm.num_fewshot, gsm.data_set, gsm.data_config) == (4, 8, "openai/gsm8k", "main")
    assert gsm.version == "0.1.0 0b3c5d"
    assert gsm.generation
    assert gsm.generation["max_gen_toks"] == 512
    assert not gsm.notes
    assert len(gsm.samples) == 4


def test_a_group_has_its_own_row_and_its_members_documents(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "olmes", "0.1.0")
    bbh = olmes.read(folder, suite("olmes", "0.1.0", BBH))["bbh:cot-v1::tulu"]
    assert next(iter(bbh.metrics.items())) == ("exact_match", (0.6, pytest.approx(0.244949, abs=1e-6)))
    assert bbh.metrics["primary_score_macro"] == (pytest.approx(7 / 12), None)
    assert bbh.n == 5
    assert len(bbh.samples) == 5


def test_a_file_cut_in_half_names_itself(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "olmes", "0.1.0")
    cut(folder / "gsm8k__tulu" / olmes.SUMMARY)
    with pytest.raises(InputError, match=r"^metrics-all.jsonl, line 1 is no whole JSON"):
        olmes.read(folder, suite("olmes", "0.1.0", GSM))


def test_documents_that_were_lost_are_noticed(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "olmes", "0.1.0")
    path = folder / "gsm8k__tulu" / "task-000-gsm8k-predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(InputError, match=r"has 3 documents, metrics-all.jsonl counts 4"):
        olmes.read(folder, suite("olmes", "0.1.0", GSM))
    path.unlink()
    with pytest.raises(InputError, match="has 0 files task-000-"):
        olmes.read(folder, suite("olmes", "0.1.0", GSM))


def test_other_shots_a_limit_and_a_row_of_another_form(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "olmes", "0.1.0")
    path = folder / "gsm8k__tulu" / olmes.SUMMARY
    row = json.loads(path.read_text())
    with pytest.raises(InputError, match=r"was asked with 8 shots, the suite says 5"):
        olmes.read(folder, suite("olmes", "0.1.0", {**GSM, "num_fewshot": 5}))
    row["task_config"]["limit"] = 4
    path.write_text(json.dumps(row))
    assert olmes.read(folder, suite("olmes", "0.1.0", GSM))["gsm8k::tulu"].notes == ("the first 4 documents",)
    del row["metrics"]["primary_score"]
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match="has no usable 'primary_score': it was written by another version"):
        olmes.read(folder, suite("olmes", "0.1.0", GSM))


def test_a_group_whose_members_did_not_all_run_is_missing(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "olmes", "0.1.0")
    path = folder / "bbh_cot-v1__tulu" / olmes.SUMMARY
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(InputError, match="no result of task 'bbh:cot-v1::tulu' of suite mine; it has bbh_date_und"):
        olmes.read(folder, suite("olmes", "0.1.0", BBH))
    with pytest.raises(InputError, match="no result of task 'popqa::tulu'"):
        olmes.read(folder, suite("olmes", "0.1.0", {"task": "popqa::tulu"}))
    with pytest.raises(InputError, match=r"olmes 0.1.0 made these results, the suite declares 0.2.0"):
        olmes.read(folder, suite("olmes", "0.2.0", BBH))


def test_table_6_is_a_run_a_task_on_the_mirror(tmp_path: Path) -> None:
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    place = Place("py", tmp_path / "model", tmp_path, tmp_path, tmp_path / "out", gpus=1, vllm=True)
    commands = olmes.commands(load("table_6"), place)
    names = "gsm8k minerva_math codex_humaneval codex_humanevalplus mmlu popqa bbh truthfulqa"
    assert " ".join(map(olmes.data_name, commands)) == names
    words = commands["gsm8k::tulu"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert words[:3] == ["py", "-m", "oe_eval.launch"]
    assert options["--task"] == "gsm8k::tulu"
    assert options["--model-type"] == "vllm"
    assert json.loads(options["--task-args"]) == {"dataset_path": str(tmp_path / "openai" / "gsm8k")}
    assert json.loads(options["--model-args"])["trust_remote_code"] is False
    assert set(names.split()) == set(olmes.DATA)
