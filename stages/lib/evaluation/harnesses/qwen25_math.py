"""Qwen2.5-Math's evaluation (Table 7): `math_eval.py` of github.com/QwenLM/Qwen2.5-Math, folder `evaluation`.

What its source says, at the commit, and this module is built around:

- It has no version and is no package: the SHA-256 of the files that decide about a score stands for one.
- `acc` is a percentage rounded to one decimal, of the first answer alone. The answers' scores are kept beside it, so
  the exact mean is taken from there, and must round to `acc`.
- Without `--use_safetensors` it looks for `pytorch_model.bin` and finds no weights.
- It loads `<data_dir>/<name>/<split>.jsonl` and, where that is absent, asks the hub.
- `math` is whatever lies there: the 500 problems of MATH-500 here.
- Numbers within 0.01% are equal, and so are x, x / 100 and 100 x.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import ConfigError, InputError
from stages.lib.evaluation.harnesses.outcomes import (
    DataNeed,
    Outcome,
    Place,
    missing,
    read_json,
    read_lines,
    standard_error,
    value,
    version_of,
)
from stages.lib.evaluation.suite_file import Suite, TaskEntry

NAME = "qwen25-math"
COMMIT = "a45202bd16f1ec06f433442dc1152d0074773465"
FILES_SHA256 = "247a46a26f1e467b7d39ae9f2a21927fc2f955788cb1aa62560c8a5d7c751b39"
"""Of the commit's files (programs/run_math_eval.py)."""
PROGRAM = Path(__file__).parent / "programs" / "run_math_eval.py"
RECORD = "files.json"
CHAT_PROMPT, PLAIN_PROMPT = "mathstral", "cot"
"""Its prompt types: question and 'put your final answer within \\boxed{}', through the model's own template, or
`Question: ... Answer:`. Its own models' types have ChatML written into them.
"""
DATA: Mapping[str, DataNeed] = {
    "math": DataNeed(("HuggingFaceH4/MATH-500",), "test", required=("problem", "solution")),
    "amc23": DataNeed(("math-ai/amc23",), "test", required=("question", "answer")),
    "minerva_math": DataNeed(("math-ai/minervamath",), "test", required=("question", "answer")),
    "olympiadbench": DataNeed(("math-ai/olympiadbench",), "test", required=("question", "final_answer")),
}


def prompt_type(entry: TaskEntry) -> str:
    """How its program words a question."""
    return CHAT_PROMPT if entry.chat_template else PLAIN_PROMPT


def commands(suite: Suite, place: Place) -> dict[str, list[str]]:
    """{task: words} of one run a task, so that each has its own settings."""
    return {entry.task: _command(entry, place) for entry in suite.tasks}


def _command(entry: TaskEntry, place: Place) -> list[str]:
    if entry.num_fewshot and entry.chat_template:
        raise ConfigError(f"task '{entry.task}': {NAME} asks without examples through a chat template: num_fewshot = 0")
    options: dict[str, Any] = {
        "data_names": entry.task,
        "data_dir": place.data,
        "model_name_or_path": place.model,
        "output_dir": place.output,
        "split": DATA[entry.task].split if entry.task in DATA else "test",
        "prompt_type": prompt_type(entry),
        "num_test_sample": entry.limit or -1,
        "num_shots": entry.num_fewshot,
        "seed": place.seed,
        "temperature": entry.temperature or 0,
        "top_p": entry.top_p or 1,
        "n_sampling": entry.repeats,
        "max_tokens_per_call": entry.max_new_tokens or 2048,
        "start": 0,
        "end": -1,
    }
    flags = ["--save_outputs", "--overwrite", "--use_safetensors"]
    flags += ["--apply_chat_template"] if entry.chat_template else []
    flags += ["--use_vllm"] if place.vllm else []
    words = [word for name, given in options.items() for word in (f"--{name}", str(given))]
    return [place.python, str(PROGRAM), str(place.output / RECORD), *words, *flags]


def environment(place: Place) -> dict[str, str]:
    """It reads the variable without a default."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(place.gpus)))}


def row(task: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the hub's data set as its loader reads it. Raises InputError for a row without an answer."""
    if task == "minerva_math" and "solution" not in given:
        return {"problem": given["question"], "solution": f"$\\boxed{{{given['answer']}}}$"}
    if task == "olympiadbench":
        answers = given["final_answer"]
        if not isinstance(answers, list) or not answers:
            raise InputError(f"task {task}: a row of its data set has no final_answer")
        return {"question": given["question"], "final_answer": answers}  # and no pictures
    return dict(given)


def prepare(suite: Suite, rows: Mapping[str, list[dict[str, Any]]], place: Place) -> None:
    """Write each task's questions as `<data>/<task>/<split>.jsonl`. rows: {task: rows of its data set}."""
    for entry in suite.tasks:
        folder = place.data / entry.task
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{DATA[entry.task].split}.jsonl", "w", encoding="utf-8") as stream:
            for given in rows[entry.task]:
                stream.write(json.dumps(row(entry.task, given), ensure_ascii=False, default=str) + "\n")


def read(folder: Path, suite: Suite) -> dict[str, Outcome]:
    """What it said of each task of a suite. Raises InputError naming the file."""
    version_of(folder, NAME, suite.harness_version)
    return {entry.task: _outcome(folder, suite, entry) for entry in suite.tasks}


def _outcome(folder: Path, suite: Suite, entry: TaskEntry) -> Outcome:
    paths = sorted((folder / entry.task).glob("*_metrics.json"))
    if len(paths) != 1:
        there = [path.parent.name for path in folder.glob("*/*_metrics.json")]
        if not paths:
            raise missing(suite, entry, f"{folder.name}/", there)
        raise InputError(f"{entry.task}/ has {len(paths)} files *_metrics.json, of more than one run: empty it")
    path = paths[0]
    metrics = read_json(path)
    rows = read_lines(path.with_name(path.name.replace(f"_{prompt_type(entry)}_metrics.json", ".jsonl")))
    n, acc = value(metrics, "num_samples", int, path.name), float(value(metrics, "acc", (int, float), path.name))
    if len(rows) != n:
        raise InputError(
            f"{path.name} counts {n} questions, its file of answers has {len(rows)}: it was cut, run it again"
        )
    scores = [[float(bool(s)) for s in value(r, "score", list, path.name)] for r in rows]
    if any(len(s) != entry.repeats for s in scores):
        raise InputError(f"{path.name}: a question has not {entry.repeats} answers, as the suite says: run it again")
    first = sum(s[0] for s in scores) / max(n, 1)
    if not math.isclose(first * 100, acc, abs_tol=0.051):
        raise InputError(f"{path.name} says acc {acc}, its answers score {first * 100:.2f}: the files are of two runs")
    means = [sum(s) / len(s) for s in scores]
    return Outcome(
        metrics={"pass@1": (sum(means) / max(n, 1), standard_error(means))},
        n=n,
        data_set=DATA[entry.task].ids[0] if entry.task in DATA else entry.task,
        split=DATA[entry.task].split if entry.task in DATA else "test",
        generation={
            "prompt_type": prompt_type(entry),
            "temperature": entry.temperature or 0,
            "top_p": entry.top_p or 1,
            "max_new_tokens": entry.max_new_tokens or 2048,
        },
        notes=tuple(_notes(metrics)),
        samples=rows,
    )


def _notes(metrics: Mapping[str, Any]) -> list[str]:
    late = int(metrics.get("timeout_samples") or 0)
    return [f"{late} answers took its grader longer than 3 s and count as wrong"] if late else []
