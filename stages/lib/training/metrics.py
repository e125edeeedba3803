"""What a training reports while it runs: a row of numbers every few steps, and its progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.core.context import Context


class MetricsLogger:
    """Rows and progress of one training, to the run's event log. Every process calls it; the first one's rows count."""

    def __init__(self, ctx: Context[Any], log_every: int, steps: int, total_tokens: int | None) -> None:
        """total_tokens: of the whole run, for the progress in tokens; None: progress counts steps."""
        self._ctx, self._log_every, self._steps, self._total_tokens = ctx, log_every, steps, total_tokens

    def log(self, step: int, tokens: int, row: Mapping[str, float], heldout: Mapping[str, float] | None) -> None:
        """Report step `step` (from 1). row: loss, learning rate and so on; heldout: what a measurement gave, None
        without one; such a step always has a row, as have the first and the last.
        """
        if heldout is not None or step in (1, self._steps) or step % self._log_every == 0:
            self._ctx.metric(step, tokens=tokens, **row, **(heldout or {}))
        if self._total_tokens is None:
            self._ctx.progress(step, self._steps, "steps")
        else:
            self._ctx.progress(tokens, self._total_tokens, "tokens")
