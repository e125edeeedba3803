"""Run `evaluate`: point the harness's own tasks at the mirrors, score, write report, samples and programs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.core.timed_part import TimedPart
from stages.evaluate.comparing import Facts, reasons
from stages.evaluate.mirrors import Mirrors, joint_fingerprint
from stages.evaluate.spec import HARNESS, EvaluateConfig
from stages.lib.evaluation.statistics import aggregates
from stages.lib.evaluation.suite_file import Suite, TaskEntry
from stages.lib.formats.completions import CodeTask, Completions, write_completions
from stages.lib.formats.reports import (
    TOY,
    EvaluatedModel,
    Harness,
    Report,
    Score,
    sample_value,
    write_report,
)

TORCH_DTYPE = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def run(ctx: Context[EvaluateConfig]) -> None:
    """Write `report` and `completions`."""
    offline(ctx.scratch)
    mirrors = Mirrors(Path(each.path) for each in ctx.inputs("suites"))
    from stages.evaluate import harness, tasks  # import torch and transformers: after the environment is set

    index = tasks.TaskIndex()
    entries = [(suite, entry) for suite in ctx.config.suites for entry in suite.tasks]
    bounds = []
    for suite, entry in entries:  # a mistake in the last one is told before the first is scored
        with _named(ctx, suite):
            bounds.append(tasks.bind(index, entry, mirrors, ctx.config.seed))
    artifact = ctx.input("model")
    model = harness.load(artifact.path, ctx.config)
    results: list[Score] = []
    programs: list[tuple[CodeTask, Any]] = []
    parts: dict[str, dict[str, Any]] = {}
    for number, ((suite, entry), bound) in enumerate(zip(entries, bounds, strict=True)):
        ctx.progress(number, len(entries), "tasks")
        with _named(ctx, suite), TimedPart() as part:
            scored = harness.score(model, bound, entry, ctx.config)
            about = _about(ctx, suite, entry, bound, scored, model, tasks.version())
            if entry.execute:
                programs.append((_code_task(entry, about), scored.programs))
            else:
                results.extend(_scores(entry, about, scored))
        parts[f"{suite.name}/{entry.task}"] = {**part.spent(), **_asked(entry, scored)}
        _write_samples(ctx, suite, entry, scored)
        ctx.log(f"{suite.name}/{entry.task}, {entry.num_fewshot}-shot: {_said(entry, scored, results)}")
    report = Report(
        model=EvaluatedModel(
            node=artifact.node,
            digest=artifact.manifest.digest,
            parameters=model.parameters,
            dtype=TORCH_DTYPE[ctx.config.precision],
            trained_on=tuple(artifact.meta.get("benchmarks", ())),
        ),
        harness=Harness(name=HARNESS, version=tasks.version()),
        seed=ctx.config.seed,
        results=tuple(results),
        aggregates=aggregates((suite.name for suite in ctx.config.suites), results),
    )
    write_report(ctx.output("report"), report)
    ctx.stat(parts=parts)
    listing = Completions(
        model=report.model, harness=report.harness, seed=report.seed, tasks=tuple(task for task, _ in programs)
    )
    write_completions(Path(ctx.output("completions")), listing, (rows for _, rows in programs))
    _tell(ctx, report, programs, len(entries))


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


class _named:
    """Puts the node and the suite before what is wrong with an entry."""

    def __init__(self, ctx: Context[EvaluateConfig], suite: Suite) -> None:
        self.place = f"{ctx.node}.suites.{suite.name}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ConfigError | InputError):
            raise type(error)(f"{self.place}: {error}") from error


def _about(
    ctx: Context[EvaluateConfig], suite: Suite, entry: TaskEntry, bound: Any, scored: Any, model: Any, version: str
) -> dict[str, Any]:
    """What a score and a task of programs say alike."""
    sources = list(bound.data.values())
    fingerprint = joint_fingerprint((one, scored.splits[name]) for name, one in bound.data.items())
    synthetic = any(one.synthetic for one in sources)
    facts = Facts(
        harness_version=version,
        task_version=scored.version,
        n=scored.n,
        n_total=scored.n_total,
        synthetic=synthetic,
        truncated=scored.truncated,
        joined=scored.joined,
        absent=(len(bound.absent), len(bound.absent) + len(sources)),
        fingerprint=fingerprint,
        stored=model.stored,
        dtype=TORCH_DTYPE[ctx.config.precision],
    )
    why = reasons(suite, entry, facts)
    ids = sorted({one.data_set.id for one in sources})
    names = {f"{TOY}{id.partition('/')[2]}" if synthetic else id.partition("/")[2] for id in ids}
    return {
        "suite": suite.name,
        "task": entry.task,
        "n_total": scored.n_total,
        "num_fewshot": entry.num_fewshot,
        "data_set": ", ".join(ids),
        "data_config": sources[0].config if len(sources) == 1 else None,
        "data_fingerprint": fingerprint,
        "split": ", ".join(sorted(set(scored.splits.values()))),
        "task_version": scored.version,
        "truncated": scored.truncated,
        "in_domain": bool(names & set(ctx.input("model").meta.get("benchmarks", ()))),
        "repeats": scored.repeats,
        "chat_template": entry.chat_template,
        "generation": scored.generation,
        "comparable_to_paper": not why,
        "note": "; ".join(why),
        "toy": synthetic,
        "table": suite.table,
        "column": entry.column if suite.table else None,
    }


def _scores(entry: TaskEntry, about: dict[str, Any], scored: Any) -> list[Score]:
    """Every metric under every filter. Raises ConfigError when the entry's own is not among them."""
    headlines = [m for m in scored.metrics if entry.metric in (None, m.name) and entry.filter in (None, m.filter)]
    if not headlines:
        asked = ", ".join(f"{key} '{value}'" for key in ("metric", "filter") if (value := getattr(entry, key)))
        given = ", ".join(f"{m.name} (filter {m.filter})" for m in scored.metrics)
        raise ConfigError(f"task {entry.task} has no {asked}: the harness gives {given}")
    return [
        Score(
            metric=metric.name,
            filter=metric.filter,
            headline=metric is headlines[0],
            value=metric.value,
            stderr=metric.stderr,
            higher_is_better=metric.higher_is_better,
            n=scored.n,
            **about,
        )
        for metric in scored.metrics
    ]


def _code_task(entry: TaskEntry, about: dict[str, Any]) -> CodeTask:
    k = entry.k or (1,)
    return CodeTask(k=k, headline=entry.metric or f"pass@{k[0]}", **about)


def _asked(entry: TaskEntry, scored: Any) -> dict[str, Any]:
    """How much an entry asked: what a forecast of a larger run makes larger."""
    written = scored.generation is not None
    return {
        "documents": scored.n,
        "of": scored.n_total,
        "limit": entry.limit,
        "answers": scored.n * scored.repeats if written else 0,
        "new_tokens": entry.max_new_tokens,
    }


def _said(entry: TaskEntry, scored: Any, results: list[Score]) -> str:
    if entry.execute:
        return f"programs for {len(scored.programs)} documents"
    headline = next(s for s in results[::-1] if s.headline)
    return f"{headline.metric} {headline.value:.4f}"


def _tell(ctx: Context[EvaluateConfig], report: Report, programs: list[tuple[CodeTask, Any]], count: int) -> None:
    ctx.stat(**{f"{s.suite}/{s.name}": round(s.value, 4) for s in report.results if s.headline})
    ctx.stat(**{f"{a.suite} average": round(a.value, 4) for a in report.aggregates})
    written: list[Score | CodeTask] = [*report.results, *(task for task, _ in programs)]
    ctx.stat(comparable_to_paper=all(each.comparable_to_paper for each in written))
    ctx.describe("report", meta={"tasks": count - len(programs)})
    ctx.describe("completions", meta={"tasks": len(programs)})


def _write_samples(ctx: Context[EvaluateConfig], suite: Suite, entry: TaskEntry, scored: Any) -> None:
    folder = Path(ctx.output("report")) / "samples"
    folder.mkdir(exist_ok=True)
    with open(folder / f"{suite.name}.{entry.task}.jsonl", "w", encoding="utf-8") as stream:
        for row in scored.samples:
            stream.write(json.dumps(row, ensure_ascii=False, sort_keys=True, default=sample_value) + "\n")
