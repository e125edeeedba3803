from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from stages.core.errors import ConfigError, InputError
from stages.core.preflight import PreflightContext
from stages.core.testing import LocalContext
from stages.evaluate_external.run import parameters, run
from stages.evaluate_external.spec import EvaluateExternal, EvaluateExternalConfig
from stages.lib.engines.process import EngineError
from stages.lib.evaluation.harnesses.programs.run_math_eval import FILES
from stages.lib.evaluation.suite_file import load
from stages.lib.formats.reports import FILE, Report, parse_report
from tests.support.external_harness import context, mirror
from tests.support.paths import DATA

RECORDED = DATA / "harnesses" / "qwen25-math"
PROGRAM = """
import json, shutil, sys
from pathlib import Path
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name, out = given["--data_names"], Path(given["--output_dir"])
asked = [json.loads(line) for line in open(f"{given['--data_dir']}/{name}/test.jsonl")]
if len(asked) != 4:
    raise ValueError("a question was lost")
shutil.copytree(RECORDED, out / name)
"""
"""In the place of upstream's program: it reads the questions that it is given and writes what upstream once wrote."""
ASKED = {
    "name": "mine",
    "table": "table_7",
    "harness": "qwen25-math",
    "tasks": [{"task": "amc23", "column": "AMC 2023", "chat_template": True, "max_new_tokens": 16}],
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "weights=a,b"  # a name that harnesses would read settings in
    folder.mkdir()
    save_file({"w": numpy.zeros((3, 4), "f4"), "b": numpy.zeros(5, "f4")}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32"}))
    return folder


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the stand-in's program, which a Python of its own knows."""
    source, python = tmp_path / "evaluation", tmp_path / "python"
    source.mkdir()
    for name in FILES:
        (source / name).write_text("")
    (source / "python_executor.py").write_text("class PythonExecutor: pass\n")
    (source / "math_eval.py").write_text(PROGRAM.replace("RECORDED", repr(str(RECORDED / "amc23"))))
    python.write_text(f'#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("MOXIN_QWEN25_MATH_PYTHON", str(python))
    return source


def report(ctx: LocalContext[Any]) -> Report:
    return parse_report((Path(ctx.output("report")) / FILE).read_bytes(), FILE)


def test_a_harness_of_another_python_fills_the_common_report(tmp_path: Path, model: Path, harness: Path) -> None:
    ctx = context(tmp_path, model, mirror(tmp_path / "mirror"), suite=ASKED)
    run(ctx)
    written = report(ctx)
    [score] = written.results
    assert (score.value, score.n, score.n_total, score.metric, score.headline) == (0.25, 4, 4, "pass@1", True)
    assert (score.table, score.column, score.data_set, score.toy) == ("table_7", "AMC 2023", "math-ai/amc23", False)
    assert score.data_fingerprint
    assert (written.model.parameters, written.model.dtype) == (17, "float16")
    assert (written.harness.name, written.aggregates[0].value) == ("qwen25-math", 0.25)
    assert score.note == "metric None, Table 7 has pass@1; max_new_tokens 16, Table 7 has 32768"
    assert len((Path(ctx.output("report")) / "samples" / "mine.amc23.jsonl").read_text().splitlines()) == 4
    assert ctx.stats["mine/amc23"] == 0.25


def test_made_questions_are_never_the_benchmark(tmp_path: Path, model: Path, harness: Path) -> None:
    ctx = context(tmp_path, model, mirror(tmp_path / "mirror", origin="machine"), suite=ASKED)
    run(ctx)
    [score] = report(ctx).results
    assert score.toy
    assert not score.comparable_to_paper
    assert score.name == "toy-amc23"
    assert score.note.startswith("the data set was made from this run's own documents; ")


def test_another_version_is_told_before_the_first_question(tmp_path: Path, model: Path, harness: Path) -> None:
    ctx = context(tmp_path, model, mirror(tmp_path / "mirror"), suite={**ASKED, "harness_version": "a45202b"})
    with pytest.raises(ConfigError, match=r"is of qwen25-math a45202b, MOXIN_QWEN25_MATH_PYTHON has files \w{12}:"):
        run(ctx)
    assert not (Path(ctx.scratch) / "output").exists()


def test_a_harness_that_fails_says_why(tmp_path: Path, model: Path, harness: Path) -> None:
    (harness / "math_eval.py").write_text("raise ValueError('no such prompt')")
    with pytest.raises(EngineError, match="qwen25-math ended with status 1: ValueError: no such prompt"):
        run(context(tmp_path, model, mirror(tmp_path / "mirror"), suite=ASKED))


@pytest.mark.parametrize("path", [None, "/nowhere/python"])
def test_what_is_not_installed_is_told_with_how_to_get_it(
    tmp_path: Path, model: Path, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOXIN_OLMES_PYTHON", raising=False)
    if path:
        monkeypatch.setenv("MOXIN_OLMES_PYTHON", path)
    ctx = context(tmp_path, model, mirror(tmp_path / "mirror"), suite="table_6")
    with pytest.raises(ConfigError, match=r"olmes is not installed where this runs .*containers/olmes/README.md"):
        run(ctx)
    monkeypatch.setenv("MOXIN_OLMES_PYTHON", sys.executable)
    with pytest.raises(ConfigError, match=r"MOXIN_OLMES_PYTHON has no olmes .*ai2-olmes.*: see containers/olmes"):
        run(ctx)


def test_a_data_set_that_is_not_held_is_told(tmp_path: Path, model: Path, harness: Path) -> None:
    asked = {**ASKED, "tasks": [{"task": "olympiadbench", "chat_template": True}]}
    with pytest.raises(InputError, match="task olympiadbench of mine needs data set math-ai/olympiadbench; the suites"):
        run(context(tmp_path, model, mirror(tmp_path / "mirror"), suite=asked))


def test_suites_of_other_harnesses_and_vllm_without_a_gpu_are_refused() -> None:
    with pytest.raises(ValidationError, match="suite 'table_2' is of lm-evaluation-harness; this stage runs olmes"):
        EvaluateExternalConfig.model_validate({"suite": "table_2"})
    with pytest.raises(ValidationError, match="vllm = true needs a GPU"):
        EvaluateExternalConfig(suite=load("table_7"), vllm=True)


def test_a_plan_tells_what_is_not_installed(harness: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = EvaluateExternal.__new__(EvaluateExternal)
    monkeypatch.delenv("MOXIN_OLMES_PYTHON", raising=False)
    asked = EvaluateExternalConfig(suite=load("table_6"))
    [problem] = stage.preflight(asked, PreflightContext(here=True, deep=False))
    assert problem.line("olmes_dpo") == (
        "MOXIN_OLMES_PYTHON: harness 'olmes' is not installed on this machine: install it as"
        " containers/olmes/README.md says, and name its Python there"
    )
    assert not list(stage.preflight(asked, PreflightContext(here=False, deep=False)))
    assert not list(stage.preflight(EvaluateExternalConfig(), PreflightContext(here=True, deep=False)))


def test_weights_are_counted_over_all_files(model: Path) -> None:
    save_file({"more": numpy.zeros((2, 2), "f4")}, model / "model-2.safetensors")
    assert parameters(model) == 21
