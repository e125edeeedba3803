"""Run `execute_code`: every program with its test in a sandbox of its own; the results, pass@k, the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.context import Context
from stages.core.errors import InputError, Preempted
from stages.core.files import inside
from stages.execute_code.sandbox import MODES, Limits, Outcome, Sandbox
from stages.execute_code.spec import ExecuteCodeConfig
from stages.lib.evaluation.statistics import aggregates, mean_and_error, pass_at_k
from stages.lib.formats.completions import Candidate, CodeTask, read_candidates, read_completions
from stages.lib.formats.reports import TOY, Report, Score, write_report

PATIENCE = 0.2
"""Seconds between two looks at whether the stage is to stop."""


@dataclass(frozen=True)
class Tested:
    """A problem, and how its programs ended, in their order."""

    candidate: Candidate
    outcomes: tuple[Outcome, ...]

    @property
    def right(self) -> int:
        return sum(o.passed for o in self.outcomes)


def run(ctx: Context[ExecuteCodeConfig]) -> None:
    """Write the report."""
    config, source = ctx.config, Path(ctx.input("completions").path)
    listing = read_completions(source)
    rows = {task.file: _checked(ctx.node, task, read_candidates(source, task)) for task in listing.tasks}
    total = sum(len(candidate.programs) for candidates in rows.values() for candidate in candidates)
    limits = Limits(
        seconds=config.seconds,
        wall_seconds=config.wall_seconds,
        memory_mib=config.memory_mib,
        processes=config.processes,
        disk_mib=config.disk_mib,
        output_kib=config.output_kib,
    )
    modes = MODES if config.isolation == "required" else ("namespaces",)
    results: list[Score] = []
    reasons: Counter[str] = Counter()
    done = 0
    if listing.tasks:
        with (
            ThreadPoolExecutor(config.workers) as threads,  # waits for its threads: last, after the sandbox was closed
            Sandbox(ctx.node, limits, config.packages, Path(ctx.scratch), modes) as sandbox,
        ):
            ctx.log(f"programs are held by {sandbox.mode}")
            ctx.stat(isolation=sandbox.mode)
            for task in listing.tasks:
                tested = []
                for result in _test(ctx, sandbox, threads, rows[task.file]):
                    tested.append(result)
                    done += len(result.outcomes)
                    ctx.progress(done, total, "programs")
                reasons.update(o.reason for t in tested for o in t.outcomes)
                results += _scores(task, tested)
                _write_samples(Path(ctx.output("report")), task, tested)
                ctx.log(_line(results, task))
    report = Report(
        model=listing.model,
        harness=listing.harness,
        seed=listing.seed,
        results=tuple(results),
        aggregates=aggregates(dict.fromkeys(task.suite for task in listing.tasks), results),
    )
    write_report(ctx.output("report"), report)
    ctx.stat(programs=total, ended=dict(sorted(reasons.items())))
    ctx.stat(**{f"{s.name} {s.metric}": round(s.value, 4) for s in results if s.headline})
    ctx.describe("report", meta={"programs": total, "ended": dict(sorted(reasons.items()))})


def _checked(node: str, task: CodeTask, candidates: Iterator[Candidate]) -> list[Candidate]:
    """The candidates of a task. Raises InputError for one that its metrics cannot be computed from."""
    rows = list(candidates)
    if not rows:
        raise InputError(f"{node}: {task.file} holds no problem: run the evaluation again")
    for row in rows:
        if len(row.programs) != task.repeats:
            raise InputError(
                f"{node}: {task.file}: problem {row.id} has {len(row.programs)} programs, its task says {task.repeats}"
            )
    if not task.k or max(task.k) > task.repeats or min(task.k) < 1:
        raise InputError(f"{node}: {task.file}: pass@{max(task.k, default=0)} of {task.repeats} programs a problem")
    if task.headline not in [f"pass@{k}" for k in task.k]:
        raise InputError(f"{node}: {task.file}: its headline {task.headline} is not one of pass@k, k in {task.k}")
    return rows


def _test(
    ctx: Context[ExecuteCodeConfig], sandbox: Sandbox, threads: ThreadPoolExecutor, candidates: Sequence[Candidate]
) -> Iterator[Tested]:
    """Run all programs, several at a time; problems in their order. Raises Preempted when asked to stop."""
    waiting = [
        [threads.submit(sandbox.run, f"{program}\n{candidate.test}") for program in candidate.programs]
        for candidate in candidates
    ]
    try:
        for candidate, futures in zip(candidates, waiting, strict=True):
            yield Tested(candidate, tuple(_result(ctx, future) for future in futures))
    except BaseException:
        for future in (f for futures in waiting for f in futures):
            future.cancel()
        raise


def _result(ctx: Context[ExecuteCodeConfig], future: Future[Outcome]) -> Outcome:
    while True:
        if ctx.stopping:
            raise Preempted("stopped while programs ran; the next run begins with the first")
        try:
            return future.result(PATIENCE)
        except NotYet:
            continue


def _scores(task: CodeTask, tested: Sequence[Tested]) -> list[Score]:
    """A row of the report for each k."""
    shared: dict[str, Any] = task.model_dump(exclude={"k", "headline"})
    rows = []
    for k in task.k:
        value, error = mean_and_error([pass_at_k(len(t.outcomes), t.right, k) for t in tested])
        metric = f"pass@{k}"
        headline = metric == task.headline
        column = task.column if headline else None
        row = shared | {"metric": metric, "headline": headline, "value": value, "stderr": error, "column": column}
        rows.append(Score(**row, n=len(tested)))
    return rows


def _line(results: Sequence[Score], task: CodeTask) -> str:
    score = next(s for s in results[::-1] if s.headline)
    return f"{score.name}: {score.metric} {score.value:.4f} ({score.n} problems, {task.repeats} programs each)"


def _write_samples(folder: Path, task: CodeTask, tested: Sequence[Tested]) -> None:
    """A line for each program, in the fields that the harness's samples have, too."""
    (folder / "samples").mkdir(exist_ok=True)
    with open(inside(folder / "samples", task.file), "w", encoding="utf-8") as stream:
        for t in tested:
            for number, (program, outcome) in enumerate(zip(t.candidate.programs, t.outcomes, strict=True)):
                row = {
                    "task": f"{TOY}{task.task}" if task.toy else task.task,
                    "doc_id": t.candidate.doc,
                    "doc": t.candidate.row or {"id": t.candidate.id},
                    "requests": [[t.candidate.prompt]],
                    "target": t.candidate.test,
                    "scores": [program],
                    "acc": int(outcome.passed),
                    "sample": number,
                    "result": outcome.reason,
                    "detail": outcome.detail,
                    "output": outcome.output,
                    "output_cut": outcome.output_cut,
                }
                if number == 0:  # what the problem's programs come to
                    row |= {f"pass@{k}": pass_at_k(len(t.outcomes), t.right, k) for k in task.k}
                stream.write(json.dumps(row, ensure_ascii=True) + "\n")
