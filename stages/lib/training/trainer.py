"""The training loop, the same for every stage and both backends: schedule, held-out loss, checkpoints, divergence.

Everything that a step depends on is a function of the configuration and the step's number (which data, which rate) or
lies in the checkpoint (weights, moments, loss scale). So a resumed run repeats an unbroken one exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from stages.core.context import Context
from stages.core.errors import ConfigError, Preempted
from stages.lib.training.backends.base import Backend, Batch, Update
from stages.lib.training.carried_moments import CarriedMoments
from stages.lib.training.checkpointer import AsyncCheckpointer, Read
from stages.lib.training.config import TrainerConfig
from stages.lib.training.evaluation import HeldOutEvaluation
from stages.lib.training.lr_scheduler import WarmupCosine
from stages.lib.training.metrics import MetricsLogger
from stages.lib.training.parallel_dims import ParallelDims

CHECKPOINTED = ("step", "skipped", "tokens", "seconds", "loss", "grad_norm", "tokens_per_second")
"""Attributes of a `Trainer` that its checkpoints hold beside the tensors."""


class TrainingData(Protocol):
    """What a stage trains on."""

    @property
    def total_tokens(self) -> int | None:
        """Of the whole run; None: not known before."""
        ...

    @property
    def loading_seconds(self) -> float:
        """What this process's part of a batch takes to make, on average; 0: none was made."""
        ...

    def micro_batches(self, step: int) -> Sequence[Batch]:
        """This process's part of the global batch of step `step`, counted from 0."""
        ...


class Trainer:
    """One training. Every process runs the same steps on its part of each batch."""

    def __init__(
        self,
        ctx: Context[Any],
        backend: Backend,
        data: TrainingData,
        dims: ParallelDims,
        schedule: WarmupCosine,
        evaluation: HeldOutEvaluation | None = None,
        carried: CarriedMoments | None = None,
    ) -> None:
        """ctx: its configuration has the fields of `TrainerConfig`. carried: moments to begin with; None: zeros."""
        self._ctx, self._backend, self._data, self._dims = ctx, backend, data, dims
        self._config: TrainerConfig = ctx.config
        self._schedule, self._evaluation, self.steps = schedule, evaluation, schedule.steps
        self._carried = carried
        self.step = self.skipped = self.tokens = 0
        self.loss = self.grad_norm = math.nan
        self.seconds = self.tokens_per_second = self.step_processor_seconds = 0.0
        self._checkpointer = AsyncCheckpointer(ctx, dims)
        self._metrics = MetricsLogger(ctx, self._config.log_every, self.steps, data.total_tokens)

    def run(self) -> None:
        """Train to the last step. Raises Preempted after a last checkpoint when asked to stop.

        A step is saved before its held-out loss is measured: what fails there costs a number, never the training.
        """
        if not self._resume():
            if self._carried is not None:
                self._carried.load(self._backend)
        elif self._evaluates:
            self._report()  # the attempt before stopped, or was lost, between saving and measuring
        while self.step < self.steps:
            self._train_step()
            done, evaluates = self.step == self.steps, self._evaluates
            if not evaluates:
                self._report()  # a checkpoint takes the rows up to its step along
            # all stop after the same step, or none
            stopping = self._dims.data_parallel_sum(float(self._ctx.stopping))[0] > 0
            if done or stopping or self.step % self._config.checkpoint_every == 0:
                self._save()
            if stopping and not done:
                self._checkpointer.wait()
                raise Preempted(f"stopped at step {self.step} of {self.steps}; the next run goes on from there")
            if evaluates:
                self._report()
        self._checkpointer.wait()

    @property
    def loader_rate(self) -> dict[str, int]:
        """As a statistic: tokens a second that the data of steps is made at, beside them; {}: none was made."""
        seconds = self._data.loading_seconds
        return {"loader_tokens_per_second": round(self.tokens / max(1, self.step) / seconds)} if seconds else {}

    @property
    def updates(self) -> int:
        """Steps that the moments come from, those of the phases before included."""
        return (self._carried.updates if self._carried is not None else 0) + self.step - self.skipped

    @property
    def _evaluates(self) -> bool:
        """Whether the held-out loss of this step is wanted."""
        return self._evaluation is not None and self._evaluation.due(self.step, self.steps)

    def _report(self) -> None:
        """A step's row, with its held-out loss where that is wanted, and the progress."""
        heldout = None
        if self._evaluation is not None and self._evaluates:
            heldout = self._evaluation.measure(self.step, self._checkpointer.wait)
        row = {
            "loss": self.loss,
            "learning_rate": self._schedule(self.step - 1),
            "grad_norm": self.grad_norm,
            "tokens_per_second": self.tokens_per_second,
        }
        if self.step_processor_seconds:  # of the first process, where this attempt took the step
            row["step_processor_seconds"] = self.step_processor_seconds
        self._metrics.log(self.step, self.tokens, row, heldout)

    def _train_step(self) -> None:
        """One step over a global batch. Raises ConfigError when the training has diverged."""
        started, processor, device = time.perf_counter(), time.process_time(), self._dims.device
        if device.type == "cuda":  # a GPU's own dropout: a function of the step, so that a resumed run repeats it
            torch.cuda.manual_seed(hash((self._config.seed, self.step, self._dims.rank)) % (1 << 63))
        batches = self._data.micro_batches(self.step)
        counts = sum(batch.predicted for batch in batches), sum(batch.tokens for batch in batches)
        predicted, tokens = self._dims.data_parallel_sum(*map(float, counts))
        predicted = max(1.0, predicted)
        update = self._backend.step(batches, self._schedule(self.step), predicted)
        mean = self._dims.all_reduce(update.loss)[0] / predicted
        self._require_finite(mean, update)
        elapsed = time.perf_counter() - started
        self.step, self.tokens, self.seconds = self.step + 1, self.tokens + int(tokens), self.seconds + elapsed
        self.loss, self.grad_norm, self.tokens_per_second = mean, update.grad_norm, tokens / elapsed
        self.step_processor_seconds = round(time.process_time() - processor, 6)

    def _require_finite(self, loss: float, update: Update) -> None:
        if math.isfinite(loss) and math.isfinite(update.grad_norm):
            return
        if update.overflow and math.isfinite(loss):
            self.skipped += 1  # the backend has left this step out and made its scale smaller
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {update.grad_norm}"
        raise ConfigError(
            f"{self._ctx.node}: {what} at step {self.step + 1}: training diverged; lower learning_rate (now "
            f"{self._config.learning_rate}) or lengthen the warmup (now {self._schedule.warmup_steps} steps)"
        )

    # --- checkpoints ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        state: dict[str, Any] = {name: getattr(self, name) for name in CHECKPOINTED}
        if self._evaluation is not None:
            state["unmeasured"] = dict(self._evaluation.unmeasured)
        self._checkpointer.save(self.step, {**state, **self._backend.extra_state()}, self._backend.save)

    def _resume(self) -> bool:
        """Go on from the newest checkpoint, if there is one."""
        return self._checkpointer.resume(self._load)

    def _load(self, state: Mapping[str, Any], read: Read) -> None:
        for name in CHECKPOINTED:
            setattr(self, name, state[name])
        if self._evaluation is not None:
            self._evaluation.unmeasured.clear()
            self._evaluation.unmeasured.update(state.get("unmeasured", {}))
        self._backend.load(read, state, self.updates)
