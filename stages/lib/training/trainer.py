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
from stages.lib.training.checkpointer import AsyncCheckpointer, Read
from stages.lib.training.config import TrainerConfig
from stages.lib.training.corruption import CorruptionWatch
from stages.lib.training.evaluation import HeldOutEvaluation
from stages.lib.training.first_state import FirstState
from stages.lib.training.lr_scheduler import WarmupCosine
from stages.lib.training.metrics import MetricsLogger
from stages.lib.training.parallel_dims import ParallelDims
from stages.lib.training.spikes import SpikeGuard
from stages.lib.training.stalls import StallWatch

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
        first: FirstState,
        evaluation: HeldOutEvaluation | None = None,
    ) -> None:
        """ctx: its configuration has the fields of `TrainerConfig`. first: what the backend has begun with."""
        self._ctx, self._backend, self._data, self._dims = ctx, backend, data, dims
        self._config: TrainerConfig = ctx.config
        self._schedule, self._evaluation, self.steps = schedule, evaluation, schedule.steps
        self._first = first
        self.guard = SpikeGuard(self._config.spikes)
        self._trouble: dict[str, float] = {}
        """What is wrong with the last step."""
        self.step = self.skipped = self.tokens = 0
        self.loss = self.grad_norm = math.nan
        self.seconds = self.tokens_per_second = self.step_processor_seconds = 0.0
        self._beginning = {name: getattr(self, name) for name in CHECKPOINTED} | backend.extra_state()
        """As a checkpoint of no step would have it."""
        self._checkpointer = AsyncCheckpointer(ctx, dims)
        config = self._config
        ctx.checkpoints.retain(config.keep_checkpoints, config.keep_every, config.spikes.reach)
        self._corruption = CorruptionWatch(ctx, backend, dims, config.compare_every)
        self._watch = StallWatch(ctx, config.stall_seconds, dims.rank, alone=dims.world_size == 1)
        self._metrics = MetricsLogger(ctx, self._config.log_every, self.steps, data.total_tokens)

    def run(self) -> None:
        """Train to the last step. Raises Preempted after a last checkpoint when asked to stop.

        A step is saved before its held-out loss is measured: what fails there costs a number, never the training.
        """
        with self._watch:
            self._run()

    def _run(self) -> None:
        if not self._resume():
            self._first.carry(self._backend)
        elif self._evaluates:
            self._report()  # the attempt before stopped, or was lost, between saving and measuring
        due = False
        while self.step < self.steps:
            self._train_step()
            self._watch.step()
            done, evaluates = self.step == self.steps, self._evaluates
            if self.guard.exhausted or (done and not self.guard.finite):
                with self._watch.paused():
                    self._go_back()
                continue
            if not evaluates:
                self._report()  # a checkpoint takes the rows up to its step along
            # all stop after the same step, or none
            stopping = self._dims.data_parallel_sum(float(self._ctx.stopping))[0] > 0
            due = due or done or stopping or self.step % self._config.checkpoint_every == 0
            if due and not self.guard.streak:  # in the middle of trouble none is taken: it could not be trusted
                with self._watch.paused():
                    self._save()
                due = False
            if stopping and not done:
                with self._watch.paused():
                    self._checkpointer.wait()
                where = "the checkpoint before" if self.guard.streak else "there"
                raise Preempted(f"stopped at step {self.step} of {self.steps}; the next run goes on from {where}")
            if evaluates:
                self._report()
        with self._watch.paused():
            self._checkpointer.wait()

    @property
    def loader_rate(self) -> dict[str, int]:
        """As a statistic: tokens a second that the data of steps is made at, beside them; {}: none was made."""
        seconds = self._data.loading_seconds
        return {"loader_tokens_per_second": round(self.tokens / max(1, self.step) / seconds)} if seconds else {}

    @property
    def updates(self) -> int:
        """Steps that the moments come from, those of the phases before included."""
        return self._first.updates + self.step - self.skipped

    @property
    def _evaluates(self) -> bool:
        """Whether the held-out loss of this step is wanted."""
        return self._evaluation is not None and self._evaluation.due(self.step, self.steps)

    def _report(self) -> None:
        """A step's row, with its held-out loss where that is wanted, and the progress."""
        heldout = None
        if self._evaluation is not None and self._evaluates:
            with self._watch.paused():
                heldout = self._evaluation.measure(self.step, self._checkpointer.wait)
        row = {
            "loss": self.loss,
            "learning_rate": self._schedule(self.step - 1),
            "grad_norm": self.grad_norm,
            "tokens_per_second": self.tokens_per_second,
        }
        if self.step_processor_seconds:  # of the first process, where this attempt took the step
            row["step_processor_seconds"] = self.step_processor_seconds
        events = self.guard.notes(self.step)
        if self._trouble:
            events |= self._trouble | {"skipped": 1.0}
            if not self.guard.finite:
                row = {name: value for name, value in row.items() if math.isfinite(value)}
        self._metrics.log(self.step, self.tokens, row, heldout, events)

    def _train_step(self) -> None:
        """One step over a global batch, which changes nothing where it would do harm."""
        started, processor, device = time.perf_counter(), time.process_time(), self._dims.device
        if device.type == "cuda":  # a GPU's own dropout: a function of the step, so that a resumed run repeats it
            torch.cuda.manual_seed(hash((self._config.seed, self.step, self._dims.rank)) % (1 << 63))
        batches = self._data.micro_batches(self.guard.batch(self.step))
        counts = sum(batch.predicted for batch in batches), sum(batch.tokens for batch in batches)
        predicted, tokens = self._dims.data_parallel_sum(*map(float, counts))
        predicted = max(1.0, predicted)
        update = self._backend.step(
            batches, self._schedule(self.step), predicted, lambda update: self._accepts(update, predicted)
        )
        elapsed = time.perf_counter() - started
        self.step, self.tokens, self.seconds = self.step + 1, self.tokens + int(tokens), self.seconds + elapsed
        self.grad_norm, self.tokens_per_second = update.grad_norm, tokens / elapsed
        self.step_processor_seconds = round(time.process_time() - processor, 6)
        self._corruption.after_update(self.step)

    def _accepts(self, update: Update, predicted: float) -> bool:
        """Whether a step may change the weights: all processes say the same, each calls it once a step."""
        self._corruption.before_update(self.step + 1)
        self.loss, norm = self._dims.all_reduce(update.loss)[0] / predicted, update.grad_norm
        overflow = update.overflow and math.isfinite(self.loss)
        self._trouble = {} if overflow else self.guard.trouble(self.loss, norm)
        if self._dims.all_reduce(float(bool(self._trouble)))[0]:
            self._trouble = self._trouble or {"not_finite": 1.0}  # another process saw it
            self.skipped += 1
            self._ctx.log(self.guard.skip(self.step + 1, self._trouble, self.loss, norm), "warning")
            return False
        if overflow:
            self.skipped += 1  # the backend leaves this step out and makes its scale smaller
        else:
            self.guard.accept(self.loss, norm)
        return True

    # --- going back -----------------------------------------------------------------------------------------------

    def _go_back(self) -> None:
        """To a checkpoint from before the trouble, or to the beginning, and around the data that led to it. Raises
        ConfigError when that was tried often enough.
        """
        left_out = self.guard.way_back(self.step)
        if left_out is None:
            raise self._diverged(", after going back and around its data," if self.guard.counts["rolled_back"] else "")
        self._checkpointer.wait()
        trouble, guard = self.step, self.guard.state()
        state: dict[str, Any] = {}

        def load(stored: Mapping[str, Any], read: Read) -> None:
            state.update(stored)
            self._load(stored, read)

        if not self._checkpointer.go_back(left_out.step):
            self._load(self._beginning, self._first.read)
            self._first.carry(self._backend)
        elif not self._checkpointer.resume(load):
            raise Preempted(f"{self._ctx.node}: the checkpoint to go back to is gone: the next attempt looks for it")
        self.guard.restore(guard)
        self.guard.go_back(left_out, state.get("guard", {}))
        self._trouble = {}
        if self.step and self._evaluates:
            self._report()  # its row comes after its checkpoint
        there = f"the checkpoint at step {self.step}" if self.step else "the beginning (no checkpoint is from before)"
        self._ctx.log(
            f"went back from step {trouble} to {there}; from step {left_out.step + 1} on it goes around batches"
            f" {left_out.first:,} to {left_out.last - 1:,}",
            "warning",
        )

    def _diverged(self, tried: str) -> ConfigError:
        what = self.guard.wrong(self.loss, self.grad_norm)
        return ConfigError(
            f"{self._ctx.node}: {what}{tried} at step {self.step - self.guard.streak + 1}: training diverged; lower"
            f" learning_rate (now {self._config.learning_rate}) or lengthen the warmup (now"
            f" {self._schedule.warmup_steps} steps); what is tried before is the field spikes"
        )

    # --- checkpoints ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self._corruption.compare(self.step)
        state: dict[str, Any] = {name: getattr(self, name) for name in CHECKPOINTED}
        state["guard"] = self.guard.state()
        if self._evaluation is not None:
            state["unmeasured"] = dict(self._evaluation.unmeasured)
        self._checkpointer.save(self.step, {**state, **self._backend.extra_state()}, self._backend.save)

    def _resume(self) -> bool:
        """Go on from the newest checkpoint, if there is one."""
        return self._checkpointer.resume(self._load)

    def _load(self, state: Mapping[str, Any], read: Read) -> None:
        for name in CHECKPOINTED:
            setattr(self, name, state[name])
        self.guard.restore(state.get("guard", {}))
        self._corruption.forget()
        if self._evaluation is not None:
            self._evaluation.unmeasured.clear()
            self._evaluation.unmeasured.update(state.get("unmeasured", {}))
        self._backend.load(read, state, self.updates)
