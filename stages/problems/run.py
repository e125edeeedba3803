"""Run `problems`: gather, check and split."""

from __future__ import annotations

from stages.core.contracts import Context
from stages.examples import ProblemWriter, held_out, problem_fault
from stages.problems.spec import ProblemsConfig
from stages.splits import write_split


def run(ctx: Context[ProblemsConfig]) -> None:
    """Write `train` and `heldout`."""
    config = ctx.config
    if config.origin == "machine":
        from stages.problems.machine import made as gather
    else:
        from stages.problems.hub import mixed as gather  # imports `datasets`
    write_split(ctx, gather, ProblemWriter, problem_fault, lambda row: held_out(row, config.heldout, config.seed))
