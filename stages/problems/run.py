"""Run `problems`: gather, take DeepScaleR's steps, split."""

from __future__ import annotations

from collections.abc import Iterator

from stages.core.context import Context
from stages.lib.formats.examples import Problem, ProblemWriter, Reject, held_out, problem_fault
from stages.lib.formats.splits import write_split
from stages.problems.pipeline import selected
from stages.problems.spec import ProblemsConfig


def run(ctx: Context[ProblemsConfig]) -> None:
    """Write `train` and `heldout`."""
    config = ctx.config
    if config.origin == "machine":
        from stages.problems.synthetic import generate as gather
    else:
        from stages.problems.hub import mixed as gather  # imports `datasets`

    def pipeline(ctx: Context[ProblemsConfig], reject: Reject) -> Iterator[Problem]:
        return selected(ctx, gather(ctx, reject), reject)

    write_split(ctx, pipeline, ProblemWriter, problem_fault, lambda row: held_out(row, config.heldout, config.seed))
