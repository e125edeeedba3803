"""OLMES (`olmes`, package ai2-olmes, module `oe_eval`; Table 6): Tülu 3's evaluation. On no package registry.

Read in copies of its repository, not run here: `oe_eval/launch.py` and `run_eval.py`. What they say, and this module is
built around:

- A task is the name of a configuration (`gsm8k::tulu`) or of a group of them (`bbh:cot-v1::tulu`: 27 tasks).
- `metrics-all.jsonl` has one row a configuration, and before them one row for each group whose members all ran; a row's
  name is `task_config.metadata.alias`. Values are fractions; `metrics.primary_score` is the one that its tables print.
- `task-<number>-<task>-predictions.jsonl` has the answers and metrics of each document.
- A group's row is the mean over its tasks ("macro") or documents ("micro").
- `dataset_path` can be set for all tasks of a run through `--task-args`; so each task is a run of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.lib.evaluation.harnesses.outcomes import (
    DataNeed,
    Outcome,
    Place,
    check_shots,
    fraction,
    missing,
    read_lines,
    standard_error,
    value,
    version_of,
)
from stages.lib.evaluation.suite_file import Suite, TaskEntry

NAME = "olmes"
PACKAGE, VERSION = "ai2-olmes", "0.1.0"
SUMMARY = "metrics-all.jsonl"
PRIMARY = "primary_score"
UNLIMITED = 10**9
"""Its default for `limit` is a trillion documents."""
DATA: Mapping[str, DataNeed] = {
    "gsm8k": DataNeed(("openai/gsm8k", "gsm8k"), "test", "main"),
    "minerva_math": DataNeed(("EleutherAI/hendrycks_math", "lighteval/MATH"), "test"),
    "codex_humaneval": DataNeed(("openai/openai_humaneval", "openai_humaneval"), "test"),
    "codex_humanevalplus": DataNeed(("evalplus/humanevalplus",), "test"),
    "mmlu": DataNeed(("cais/mmlu",), "test"),
    "popqa": DataNeed(("akariasai/PopQA",), "test"),
    "bbh": DataNeed(("lukaemon/bbh", "SaylorTwift/bbh"), "test"),
    "truthfulqa": DataNeed(("truthfulqa/truthful_qa", "truthful_qa"), "validation", "multiple_choice"),
}
"""Data set of a task, by the part of its name before the first ':'."""


def data_name(task: str) -> str:
    """The task without how it is asked."""
    return task.partition(":")[0]


def folder_name(task: str) -> str:
    """Folder of a task's run."""
    return task.replace(":", "_")


def commands(suite: Suite, place: Place) -> dict[str, list[str]]:
    """{task: words} of one run a task."""
    return {entry.task: _command(entry, place) for entry in suite.tasks}


def _command(entry: TaskEntry, place: Place) -> list[str]:
    words = [place.python, "-m", "oe_eval.launch", "--model", str(place.model)]
    words += ["--model-type", "vllm" if place.vllm else "hf"]
    words += ["--model-args", json.dumps({"trust_remote_code": False, "max_length": place.max_length})]
    words += ["--task", entry.task, "--output-dir", str(place.output / folder_name(entry.task))]
    words += ["--batch-size", str(place.batch_size), "--gpus", str(place.gpus)]
    words += ["--limit", str(entry.limit)] if entry.limit else []
    if local := _local(entry.task, place.mirror):
        words += ["--task-args", json.dumps({"dataset_path": str(local)})]
    return words


def _local(task: str, mirror: Path) -> Path | None:
    """The mirror's folder of a task's data set."""
    need = DATA.get(data_name(task))
    return next((mirror / each for each in need.ids if (mirror / each).is_dir()), None) if need else None


def environment(place: Place) -> dict[str, str]:
    """GPUs are counted by it."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(place.gpus)))}


def prepare(suite: Suite, rows: Mapping[str, Any], place: Place) -> None:
    """Nothing: it reads the mirror itself."""


def read(folder: Path, suite: Suite) -> dict[str, Outcome]:
    """What it said of each task of a suite. Raises InputError naming the file."""
    version = version_of(folder, NAME, suite.harness_version)
    return {entry.task: _outcome(folder / folder_name(entry.task), suite, entry, version) for entry in suite.tasks}


def _outcome(folder: Path, suite: Suite, entry: TaskEntry, version: str) -> Outcome:
    where = f"{folder.name}/{SUMMARY}"
    if not folder.is_dir():
        raise missing(suite, entry, folder.parent.name + "/", [p.name for p in folder.parent.iterdir() if p.is_dir()])
    rows = {_alias(row, where): row for row in read_lines(folder / SUMMARY)}
    if entry.task not in rows:
        raise missing(suite, entry, where, rows)
    row = rows[entry.task]
    parts = [other for name, other in rows.items() if name != entry.task] or [row]
    for part in parts:
        config = value(part, "task_config", dict, where)
        check_shots(entry, config.get("num_shots"), where)
    config = parts[0]["task_config"]
    scores = value(row, "metrics", dict, where)
    samples, right = _predictions(folder, parts, where, _primary(config))
    main = _primary(config)
    metrics: dict[str, tuple[float, float | None]] = {}
    first = fraction(scores, PRIMARY, where)
    metrics[main or PRIMARY] = (first, standard_error(right) if _same(first, right) else None)
    for key, number in scores.items():
        if (
            key not in (PRIMARY, main)
            and isinstance(number, int | float)
            and not isinstance(number, bool)
            and 0 <= number <= 1
        ):
            metrics[key] = (float(number), None)
    need = DATA.get(data_name(entry.task))
    limit = config.get("limit")
    generation = config.get("generation_kwargs")
    return Outcome(
        metrics=metrics,
        n=sum(value(part, "num_instances", int, where) for part in parts),
        data_set=need.ids[0] if need else str(config.get("dataset_path")),
        data_config=need.config if need else config.get("dataset_name"),
        split=str(config.get("split") or "test"),
        num_fewshot=config.get("num_shots"),
        version=f"{version} {row.get('task_hash', '')}".strip(),
        generation=dict(generation) if isinstance(generation, dict) else None,
        notes=(f"the first {limit} documents",) if isinstance(limit, int | float) and limit < UNLIMITED else (),
        samples=samples,
    )


def _alias(row: Mapping[str, Any], where: str) -> str:
    config = value(row, "task_config", dict, where)
    metadata = config.get("metadata")
    named = metadata.get("alias") if isinstance(metadata, dict) else None
    return named if isinstance(named, str) else value(row, "task_name", str, where)


def _primary(config: Mapping[str, Any]) -> str:
    metric = config.get("primary_metric")
    return metric if isinstance(metric, str) and metric not in ("macro", "micro", "mc_or_rc") else ""


def _predictions(
    folder: Path, parts: list[dict[str, Any]], where: str, main: str
) -> tuple[list[dict[str, Any]], list[float]]:
    """Every document's row, and its primary metric where all have it. Raises InputError for a file that was cut."""
    samples: list[dict[str, Any]] = []
    for part in parts:
        pattern = f"task-{value(part, 'task_idx', int, where):03d}-*-predictions.jsonl"
        files = sorted(folder.glob(pattern))
        if len(files) != 1:
            raise InputError(f"{folder.name}/ has {len(files)} files {pattern}, one was written: run it again")
        name = files[0].name
        rows = read_lines(files[0])
        count = value(part, "num_instances", int, where)
        if len(rows) != count:
            raise InputError(f"{folder.name}/{name} has {len(rows)} documents, {SUMMARY} counts {count}: run it again")
        samples += rows
    numbers = [row["metrics"].get(main) for row in samples if isinstance(row.get("metrics"), dict)]
    right = [float(f) for f in numbers if isinstance(f, int | float)]
    return samples, right if len(right) == len(samples) else []


def _same(score: float, right: list[float]) -> bool:
    return bool(right) and abs(score - sum(right) / len(right)) < 1e-6
