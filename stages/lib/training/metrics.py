"""What a training reports while it runs: a row of numbers every few steps, and its progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.core.context import Context

EVENTS = {
    "skipped": "1: the step's update was left out",
    "not_finite": "1: because its loss or gradient norm is no finite number; the row has those that are",
    "spike": "because its loss or gradient norm is so many standard deviations above those before",
    "rolled_back": "the training went back from this step, and goes on with this row",
    "left_out": "batches that it goes around since",
    "corrupted": "processes whose weights something else than an update has changed: the attempt ends",
}
"""What a row may have beside its numbers, and what it means."""


class MetricsLogger:
    """Rows and progress of one training, to the run's event log. Every process calls it; the first one's rows count."""

    def __init__(self, ctx: Context[Any], log_every: int, steps: int, total_tokens: int | None) -> None:
        """total_tokens: of the whole run, for the progress in tokens; None: progress counts steps."""
        self._ctx, self._log_every, self._steps, self._total_tokens = ctx, log_every, steps, total_tokens

    def log(
        self,
        step: int,
        tokens: int,
        row: Mapping[str, float],
        heldout: Mapping[str, float] | None,
        events: Mapping[str, float] | None = None,
    ) -> None:
        """Report step `step` (from 1). row: loss, learning rate and so on; heldout: what a measurement gave, None
        without one; events: what happened, as EVENTS names it. A step with any of them always has a row, as have the
        first and the last.
        """
        if events or heldout is not None or step in (1, self._steps) or step % self._log_every == 0:
            self._ctx.metric(step, tokens=tokens, **row, **(heldout or {}), **(events or {}))
        if self._total_tokens is None:
            self._ctx.progress(step, self._steps, "steps")
        else:
            self._ctx.progress(tokens, self._total_tokens, "tokens")
