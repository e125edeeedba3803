"""Run `evaluate`: point the harness's own tasks at the suite's mirror, score, write report and samples.

A task is used as the harness defines it; only `dataset_path` (to the mirror) and the number of shots are set, through
an inline group, which merges over the task's YAML.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from pathlib import Path
from typing import Any

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.evaluate.spec import COLUMNS, TABLES, EvaluateConfig, Task
from stages.lib.formats.reports import TOY, Aggregate, EvaluatedModel, Harness, Report, Score, write_report
from stages.lib.formats.suites import Suite, read_suite

HEADLINE = {"winogrande": "acc", "mmlu": "acc"}
"""The metric that the paper's tables print: acc_norm, but acc for these (paper 7)."""
TORCH_DTYPE = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def run(ctx: Context[EvaluateConfig]) -> None:
    """Write the report."""
    offline(ctx.scratch)
    suite_folder = Path(ctx.input("suite").path)
    suite = read_suite(suite_folder)
    from stages.evaluate import harness  # imports torch and transformers: after the environment is set

    index = harness.TaskIndex()
    plans = [
        plan
        for name, tasks in ctx.config.suites.items()
        for plan in _plans(ctx, index, suite, suite_folder, name, tasks)
    ]
    model = harness.load(ctx.input("model").path, ctx.config)
    results: list[Score] = []
    for number, plan in enumerate(plans):
        ctx.progress(number, len(plans), "tasks")
        scored = harness.score(model, index, plan, ctx.config)
        results.extend(_scores(ctx, plan, scored, suite))
        _write_samples(ctx, plan, scored)
        headline = next(s for s in results[::-1] if s.headline)
        ctx.log(f"{plan.suite}/{headline.name}, {plan.task.num_fewshot}-shot: {headline.metric} {headline.value:.4f}")
    artifact = ctx.input("model")
    report = Report(
        model=EvaluatedModel(
            node=artifact.node,
            digest=artifact.manifest.digest,
            parameters=model.parameters,
            dtype=TORCH_DTYPE[ctx.config.precision],
            trained_on=tuple(artifact.meta.get("benchmarks", ())),
        ),
        harness=Harness(name="lm-evaluation-harness", version=harness.version()),
        seed=ctx.config.seed,
        results=tuple(results),
        aggregates=tuple(_aggregate(name, results) for name in ctx.config.suites),
    )
    write_report(ctx.output("report"), report)
    ctx.stat(**{f"{s.suite}/{s.name}": round(s.value, 4) for s in results if s.headline})
    ctx.stat(**{f"{a.suite} average": round(a.value, 4) for a in report.aggregates})
    ctx.stat(comparable_to_paper=all(s.comparable_to_paper for s in results))
    ctx.describe("report", meta={"tasks": len(plans)})


def offline(scratch: Any) -> None:
    """Nothing is fetched and nothing is cached outside the scratch folder."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_HOME=str(Path(scratch) / "huggingface"),
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        LM_HARNESS_CACHE_PATH=str(Path(scratch) / "harness"),
        TOKENIZERS_PARALLELISM="false",
    )


def _plans(
    ctx: Context[EvaluateConfig], index: Any, suite: Suite, folder: Path, name: str, tasks: tuple[Task, ...]
) -> list[Any]:
    """The tasks of a suite, bound to the mirror; MMLU stands for those of its subjects that the mirror has."""
    from stages.evaluate.harness import Plan

    plans = []
    for task in tasks:
        members = [task.task] if task.task != "mmlu" else None
        if members is None:
            data_set = suite.find("cais/mmlu")
            members = sorted(f"mmlu_{subject}" for subject in (data_set.rows if data_set else {}))
            if not members:
                raise InputError(f"{ctx.node}: task mmlu needs data set cais/mmlu, which the suite does not hold")
        for member in members:
            if member not in index.names:
                close = difflib.get_close_matches(member, index.names, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                raise ConfigError(f"{ctx.node}.suites.{name}: lm-evaluation-harness has no task '{member}'{hint}")
            path, config = index.data_set(member)
            data_set = suite.find(path)
            if data_set is None or (config or "default") not in data_set.rows:
                raise InputError(
                    f"{ctx.node}: task {member} needs data set {path}, configuration {config or 'default'}, which the"
                    f" suite does not hold; it has {', '.join(d.id for d in suite.data_sets)}"
                )
        plans.append(Plan(name, task, tuple(members), folder))
    return plans


def _scores(ctx: Context[EvaluateConfig], plan: Any, scored: Any, suite: Suite) -> list[Score]:
    """The metrics of one task; those of a group are means over its members' documents."""
    path = scored.data_set[0]
    data_set = suite.find(path)
    assert data_set is not None
    limited, synthetic = scored.n < scored.n_total, data_set.origin == "machine"
    notes = [
        *(["the data set was made from this run's own documents"] if synthetic else []),
        *([f"{scored.n} of {scored.n_total} documents"] if limited else []),
        *(
            [f"{scored.joined} answers were encoded apart from their questions: a piece of the vocabulary spans both"]
            if scored.joined
            else []
        ),
        *([f"{len(plan.members)} of 57 subjects"] if plan.task.task == "mmlu" and len(plan.members) != 57 else []),
    ]
    name = path.partition("/")[2]
    in_domain = (f"{TOY}{name}" if synthetic else name) in ctx.input("model").meta.get("benchmarks", ())
    preferred = HEADLINE.get(plan.task.task, "acc_norm")
    headline = preferred if preferred in scored.metrics else next(iter(scored.metrics))
    return [
        Score(
            suite=plan.suite,
            task=plan.task.task,
            metric=metric,
            headline=metric == headline,
            value=value,
            stderr=stderr,
            n=scored.n,
            n_total=scored.n_total,
            num_fewshot=plan.task.num_fewshot,
            data_set=path,
            split=scored.split,
            task_version=scored.version,
            truncated=scored.truncated,
            in_domain=in_domain,
            comparable_to_paper=not notes,
            note="; ".join(notes),
            toy=synthetic,
            table=TABLES.get(plan.suite),
            column=COLUMNS.get(plan.task.task) if plan.suite in TABLES else None,
        )
        for metric, (value, stderr) in scored.metrics.items()
    ]


def _aggregate(suite: str, results: list[Score]) -> Aggregate:
    rows = [s for s in results if s.suite == suite and s.headline]
    errors = [s.stderr for s in rows if s.stderr is not None]
    error = math.sqrt(sum(e * e for e in errors)) / len(rows) if len(errors) == len(rows) else None
    return Aggregate(suite=suite, value=sum(s.value for s in rows) / len(rows), stderr=error, tasks=len(rows))


def _write_samples(ctx: Context[EvaluateConfig], plan: Any, scored: Any) -> None:
    folder = Path(ctx.output("report")) / "samples"
    folder.mkdir(exist_ok=True)
    with open(folder / f"{plan.suite}.{plan.task.task}.jsonl", "w", encoding="utf-8") as stream:
        for row in scored.samples:
            stream.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
