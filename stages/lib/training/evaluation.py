"""The loss on held-out data during a training: a failure there costs a number, never the training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from stages.core.context import Context
from stages.core.errors import Preempted
from stages.lib.training.backends.base import Backend, Batch
from stages.lib.training.parallel_dims import ParallelDims


class HeldOutEvaluation:
    """Measures every `every` steps, and at the last one."""

    def __init__(
        self,
        ctx: Context[Any],
        backend: Backend,
        dims: ParallelDims,
        batches: Callable[[], Iterable[tuple[Batch, bool]]],
        every: int,
    ) -> None:
        """batches: this process's, as many as every other process has, each with whether it counts: a process without
        data goes along with any, since the weights are gathered from all.
        """
        self._ctx, self._backend, self._dims, self._batches, self._every = ctx, backend, dims, batches, every
        self.val_loss = math.nan
        self.unmeasured: Counter[str] = Counter()
        """Why losses are missing, and how many."""
        self._measured_before = False

    def due(self, step: int, steps: int) -> bool:
        """Whether the loss after step `step` of `steps` is wanted."""
        return step == steps or step % self._every == 0

    def mean_loss(self) -> float:
        """Mean loss of the held-out tokens, over all processes."""
        total, predicted = 0.0, 0
        for batch, counts in self._batches():
            loss = self._backend.evaluate(batch)
            if counts:
                total, predicted = total + loss, predicted + batch.predicted
        self._backend.finish_evaluation()
        return self._dims.all_reduce(total)[0] / max(1.0, self._dims.data_parallel_sum(float(predicted))[0])

    def measure(self, step: int, publish_checkpoint: Callable[[], None]) -> dict[str, float]:
        """`val_loss` after step `step`; {} when it could not be measured, which is logged, and counted by its reason.

        publish_checkpoint: waits until the last checkpoint is published. The first measurement may end the process
        (memory, a kernel that cannot be compiled), and so comes after it.
        """
        if not self._measured_before:
            publish_checkpoint()
        self.val_loss, reason = math.nan, ""
        try:
            self.val_loss = self.mean_loss()
            reason = "" if math.isfinite(self.val_loss) else f"it is {self.val_loss}"
        except Preempted:
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and self._dims.is_peer_failure(error):
                raise
            reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"
            self._backend.finish_evaluation()
        if not self._dims.all_reduce(float(bool(reason)))[0]:
            self._measured_before = True
            return {"val_loss": self.val_loss}
        self.val_loss, reason = math.nan, reason or "another process failed"  # all leave it out
        self.unmeasured[reason] += 1
        self._ctx.log(f"the held-out loss of step {step} was not measured, training goes on: {reason}", "warning")
        return {}
