"""OpenCompass 0.5.4 and Qwen2.5-Math's evaluation themselves, on the CPU, through the stage `evaluate_external`.

Their environments are made by hand (containers/opencompass, containers/qwen25-math) and named by
MOXIN_TEST_OPENCOMPASS_PYTHON and MOXIN_TEST_QWEN25_MATH_PYTHON; without them these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stages.benchmarks import toy
from stages.benchmarks.spec import BenchmarksConfig, DataSetSource
from stages.evaluate_external.run import run
from stages.lib.evaluation.harnesses import opencompass, qwen25_math
from stages.lib.evaluation.harnesses.outcomes import Place
from stages.lib.evaluation.suite_file import Suite, load
from stages.lib.formats import chat_template
from stages.lib.formats.reports import FILE, Report, parse_report
from stages.lib.formats.suites import DataSet, split_fingerprints, write_data_set, write_suite
from stages.lib.formats.suites import Suite as MirroredSuite
from tests.support import tuning
from tests.support.external_harness import BLANKS, PIQA, context, mirror

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(1200)]

PARSERS = {
    "qwen25-math": "import sys, json, types\n"
    "sys.modules['vllm'] = types.SimpleNamespace(LLM=None, SamplingParams=None)\n"
    "import math_eval\nprint(json.dumps(vars(math_eval.parse_args()), default=str))",
    "opencompass": "import json\nfrom opencompass.cli.main import parse_args\n"
    "print(json.dumps(vars(parse_args()), default=str))",
}


def python_of(harness: str) -> str:
    name = f"MOXIN_TEST_{harness.replace('-', '_').upper()}_PYTHON"
    if not (given := os.environ.get(name)):
        pytest.skip(f"{name} is not set: make the environment of containers/{harness}/README.md, and name its Python")
    return given


def parsed(harness: str, words: list[str]) -> dict[str, Any]:
    """What upstream's own parser makes of a command's options."""
    done = subprocess.run(
        [python_of(harness), "-c", PARSERS[harness], *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tuning.parent(tmp_path_factory.mktemp("model"), template=chat_template.TULU).path)


def evaluated(tmp_path: Path, model: Path, harness: str, suite: Any, monkeypatch: pytest.MonkeyPatch) -> Report:
    monkeypatch.setenv(f"MOXIN_{harness.replace('-', '_').upper()}_PYTHON", python_of(harness))
    ctx = context(tmp_path, model, mirror(tmp_path / "mirror"), suite=suite, max_length=1024)
    run(ctx)
    return parse_report((Path(ctx.output("report")) / FILE).read_bytes(), FILE)


def test_qwens_own_parser_takes_table_7(tmp_path: Path) -> None:
    place = Place("", tmp_path / "model", tmp_path, tmp_path / "data", tmp_path / "out")
    words = qwen25_math.commands(load("table_7"), place)["amc23"]
    options = parsed("qwen25-math", words[3:])
    assert (options["data_names"], options["max_tokens_per_call"], options["temperature"]) == ("amc23", 32768, 0)
    assert options["apply_chat_template"]
    assert options["use_safetensors"]


def test_qwens_evaluation_itself_fills_table_7_with_toy_questions(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On what the stage `benchmarks` makes in the four data sets' schemas."""
    monkeypatch.setenv("MOXIN_QWEN25_MATH_PYTHON", python_of("qwen25-math"))
    suite = load("table_7").model_dump()
    for task in suite["tasks"]:
        task |= {"max_new_tokens": 16, "limit": 3}
    folder, sets = tmp_path / "mirror", []
    for need in qwen25_math.DATA.values():
        tables = toy.make("", need.ids[0], DataSetSource(origin="machine"), BenchmarksConfig())
        rows = write_data_set(folder, need.ids[0], tables)
        prints = split_fingerprints(tables)
        sets.append(DataSet(id=need.ids[0], origin="machine", rows=rows, fingerprint=prints))
    write_suite(folder, MirroredSuite(data_sets=tuple(sets)))
    ctx = context(tmp_path, model, folder, suite=suite)
    run(ctx)
    report = parse_report((Path(ctx.output("report")) / FILE).read_bytes(), FILE)
    assert report.harness.version == qwen25_math.COMMIT
    assert [score.column for score in report.results] == ["MATH-500", "AMC 2023", "Minerva Math", "OlympiadBench"]
    for score in report.results:
        assert (score.n, score.toy, score.comparable_to_paper) == (3, True, False)
        assert score.value * 3 == pytest.approx(round(score.value * 3))
        assert f"3 of {score.n_total} documents" in score.note


def test_opencompass_own_parser_takes_our_command(tmp_path: Path) -> None:
    place = Place("", tmp_path / "model", tmp_path, tmp_path / "data", tmp_path / "out", batch_size=4)
    drawn = Suite.model_validate(
        {"name": "m", "harness": "opencompass", "tasks": [{"task": "gsm8k_gen", "temperature": 0.8, "top_p": 0.9}]}
    )
    [words] = opencompass.commands(drawn, place).values()
    options = parsed("opencompass", words[3:])
    assert (options["datasets"], options["hf_type"], options["hf_num_gpus"]) == (["gsm8k_gen"], "base", 0)
    assert options["generation_kwargs"] == {"do_sample": True, "temperature": 0.8, "top_p": 0.9}


def test_opencompass_itself_fills_the_report(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = evaluated(tmp_path, model, "opencompass", "table_2_opencompass", monkeypatch)
    assert report.harness.version == "0.5.4"
    counts = {score.task: (score.n, score.n_total) for score in report.results}
    assert counts == {
        "winogrande_ll": (len(BLANKS), len(BLANKS)),
        "piqa_ppl": (len(PIQA), len(PIQA)),
    }
    assert all(0 <= score.value <= 1 for score in report.results)
