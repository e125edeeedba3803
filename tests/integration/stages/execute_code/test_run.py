"""The stage on all of HumanEval."""

from __future__ import annotations

from pathlib import Path

from stages.execute_code.run import run
from tests.support.human_eval import PROBLEMS, candidates, context, report_of, samples_of, solved, task


def test_every_problem_of_humaneval_is_solved_by_its_solution(tmp_path: Path) -> None:
    ctx = context(tmp_path, [(task(k=(1,), repeats=1), candidates(PROBLEMS, solved))])
    run(ctx)
    rows = samples_of(ctx, "code.humaneval.jsonl")
    assert [r["doc"] for r in rows] == PROBLEMS
    assert [r["doc"]["task_id"] for r in rows if r["result"] != "passed"] == []
    (result,) = report_of(ctx).results
    assert (result.metric, result.value, result.n, result.n_total) == ("pass@1", 1.0, 164, 164)
    assert ctx.stats["programs"] == ctx.stats["ended"]["passed"] == 164
