"""Scores against lm-evaluation-harness's own command line, on the same model and data: a task of log-likelihoods, a
generative one with filters, and a group.

The command runs in the mirror's folder: `datasets` finds `openai/gsm8k` there, and every task is as it was shipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pyarrow as pa
import pytest

from stages.core.artifacts import EvalSuite, Model
from stages.core.testing import LocalContext, local_artifact
from stages.evaluate.run import run
from stages.evaluate.spec import EvaluateConfig
from stages.lib.formats.reports import FILE, Score, parse_report
from stages.lib.formats.suites import DataSet, Suite, read_suite, write_data_set, write_suite
from tests.support import benchmark_rows as bench
from tests.support import toy_questions
from tests.support.evaluation import make_model, own

TASKS = {"truthfulqa_mc1": 0, "gsm8k": 1, "mmlu": 1}
LIMIT, LENGTH = 14, 16
COMMAND = """
import lm_eval.tasks._index as index
from torch.utils import collect_env
# the definitions of these tasks alone: reading all 13,000 takes 12 CPU seconds, describing the machine some more
folders = ("truthfulqa", "gsm8k", "mmlu/default")
files = lambda root: sorted(path for name in folders for path in (root / name).rglob("*.yaml"))
index.TaskIndex._iter_yaml_files = staticmethod(files)
collect_env.get_pretty_env_info = lambda: ""
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("files")
    for name in ("model", "questions"):
        (root / name).mkdir()
    questions = toy_questions.mirror(root / "questions", "truthfulqa/truthful_qa", "openai/gsm8k")
    listing = read_suite(questions)
    mmlu = write_data_set(questions, "cais/mmlu", subjects())
    held = DataSet(id="cais/mmlu", origin="machine", rows=mmlu)
    write_suite(questions, Suite(data_sets=(*listing.data_sets, held)))
    return make_model(root / "model"), questions


def subjects() -> dict[str, dict[str, pa.Table]]:
    """All of MMLU's, of one to three questions each: a mean of means would differ from the mean over questions."""
    files = (Path(lm_eval.tasks.__file__).parent / "mmlu" / "default").glob("mmlu_*.yaml")
    names = sorted(path.stem.removeprefix("mmlu_") for path in files)
    assert len(names) == 57
    return {
        name: {
            split: bench.table("cais/mmlu", bench.rows("cais/mmlu", count, number, name))
            for split, count in (("test", 1 + number % 3), ("dev", 2))
        }
        for number, name in enumerate(names)
    }


@pytest.fixture(scope="module")
def theirs(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command line writes."""
    model, questions = files
    out = tmp_path_factory.mktemp("theirs")
    settings = {
        "--model": "hf", "--model_args": f"pretrained={model},dtype=float32", "--tasks": ",".join(TASKS),
        "--num_fewshot": "1", "--limit": str(LIMIT), "--gen_kwargs": f"max_gen_toks={LENGTH}", "--device": "cpu",
        "--batch_size": "8", "--output_path": str(out),
    }  # fmt: skip
    given = [*(part for pair in settings.items() for part in pair), "--log_samples"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "run", *given],
        cwd=questions,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = out.rglob("results_*.json")
    (samples,) = out.rglob("samples_gsm8k_*.jsonl")
    return json.loads(written.read_text(encoding="utf-8")) | {"gsm8k samples": read_rows(samples)}


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def report(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of our report."""
    model, questions = files
    writes = {"max_new_tokens": LENGTH}
    tasks = [
        {"task": name, "num_fewshot": shots, "limit": LIMIT} | (writes if name == "gsm8k" else {})
        for name, shots in TASKS.items()
    ]
    inputs = {"model": [local_artifact(Model, model)], "suites": [local_artifact(EvalSuite, questions)]}
    config = EvaluateConfig(threads=1, batch_size=8, suites=[own("mine", *tasks)])  # type: ignore[arg-type]
    ctx = LocalContext(tmp_path_factory.mktemp("ours"), config, inputs, node="evaluate")
    environment = dict(os.environ)
    run(ctx)
    os.environ.clear()
    os.environ.update(environment)
    return Path(ctx.output("report"))


@pytest.fixture(scope="module")
def ours(report: Path) -> tuple[Score, ...]:
    return parse_report((report / FILE).read_bytes(), "here").results


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_the_command_line(task: str, ours: tuple[Score, ...], theirs: dict[str, Any]) -> None:
    found = {f"{score.metric},{score.filter}": score for score in ours if score.task == task}
    results = theirs["results"][task]
    assert set(found) == {key for key in results if "," in key and "_stderr," not in key}
    for key, score in found.items():
        metric, _, chosen = key.partition(",")
        error = results[f"{metric}_stderr,{chosen}"]
        assert score.value == pytest.approx(results[key], abs=1e-12)
        assert score.stderr == (pytest.approx(error, abs=1e-12) if isinstance(error, float) else None)
        assert score.higher_is_better is theirs["higher_is_better"].get(task, {metric: True})[metric]
    assert {score.task_version for score in found.values()} == {str(theirs["versions"][task])}
    members = [name for name in theirs["n-samples"] if name == task or name.startswith(f"{task}_")]
    assert {score.n for score in found.values()} == {sum(theirs["n-samples"][name]["effective"] for name in members)}


def test_answers_are_those_of_the_command_line_after_every_filter(report: Path, theirs: dict[str, Any]) -> None:
    """A random model solves nothing: that its scores are equal, 0, says less than its answers."""
    asked = theirs["gsm8k samples"]
    answers = {(row["filter"], row["doc_id"]): row["filtered_resps"] for row in asked}
    assert len(answers) == 2 * LIMIT, "strict-match and flexible-extract"
    found = read_rows(report / "samples" / "mine.gsm8k.jsonl")
    assert {(row["filter"], row["doc_id"]): row["scores"] for row in found} == answers
    assert {row["doc_id"]: row["answers"] for row in found} == {row["doc_id"]: row["resps"] for row in asked}
    assert len({str(row["answers"]) for row in found}) > 1


def test_the_scores_are_not_all_alike(ours: tuple[Score, ...]) -> None:
    """Equal scores would show nothing."""
    assert len({score.value for score in ours if score.value > 0}) == 2, "truthfulqa_mc1 and mmlu"
