"""Run a TRL trainer under a stage's context: metrics, checkpoints, exact resume, orderly stops, divergence.

A checkpoint is the trainer's own folder (weights, optimizer, scheduler, random state, position), less what is a pickle.
On resume transformers reads its tensors with `weights_only=True`, skips the rows that were seen and restores the random
state.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.core.context import Context
from stages.core.errors import ConfigError, Preempted
from stages.lib.finetuning.tuning_config import TuningConfig

NOT_KEPT = ("training_args.bin", "README.md")
"""Of a trainer's checkpoint: a pickle that resuming does not need, and a card of an unfinished model."""


def common_arguments(ctx: Context[Any], device: torch.device) -> dict[str, Any]:
    """Arguments that every TRL trainer gets: optimizer, precision, no reports, no saving but ours."""
    config: TuningConfig = ctx.config
    return {
        "output_dir": str(Path(ctx.scratch) / "trainer"),
        "learning_rate": config.learning_rate,
        "adam_beta1": config.beta1,
        "adam_beta2": config.beta2,
        "adam_epsilon": config.eps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.grad_clip,
        "optim": "adamw_torch_fused",
        "per_device_train_batch_size": config.micro_batch_size,
        "bf16": config.precision == "bf16",
        "fp16": False,
        "activation_checkpointing": config.recompute == "full",
        "use_cpu": device.type == "cpu",
        "seed": config.seed,
        "data_seed": config.seed,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type == "cuda",
    }


class ContextCallback(TrainerCallback):
    """Between a trainer and a context. `offset`: steps that earlier trainers of this attempt took."""

    def __init__(
        self,
        ctx: Context[Any],
        names: Mapping[str, str],
        *,
        offset: int = 0,
        total: int | None = None,
        period: int = 1,
        on_save: Callable[[Path], None] | None = None,
    ) -> None:
        self._ctx, self._names, self._offset, self._period, self._on_save = ctx, names, offset, period, on_save
        self.stopped, self.step, self.total = False, offset, total
        self.last: dict[str, float] = {}
        self.started = self._ended = 0.0
        self._processor = 0.0
        self._clocks: dict[str, float] = {}
        """What the last step took, for its row."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint, if there was one, is loaded."""
        if state.global_step:
            self._ctx.checkpoints.note(load_seconds=time.perf_counter() - self.started)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A step's clock starts."""
        self.started, self._processor = time.perf_counter(), time.process_time()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Every step: check, and pass on each `log_every`-th."""
        if not logs or "loss" not in logs:
            return
        row = {mine: float(logs[theirs]) for theirs, mine in self._names.items() if theirs in logs}
        check(self._ctx, self._offset + state.global_step, row)
        self.last = row
        step, done = state.global_step, state.global_step >= state.max_steps
        if step == 1 or done or step % self._ctx.config.log_every == 0:
            self._ctx.metric(self._offset + step, **row, **self._clocks)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Progress; a checkpoint when one is due or the stage is asked to stop, at a step where one can be made."""
        step, self.step, self.total = state.global_step, self._offset + state.global_step, self.total or state.max_steps
        self._ended = time.perf_counter()
        self._clocks = {
            "step_seconds": round(self._ended - self.started, 6),
            "step_processor_seconds": round(time.process_time() - self._processor, 6),
        }
        self._ctx.progress(self.step, self.total, "steps")
        if step >= state.max_steps or step % self._period:
            return
        self.stopped = self._ctx.stopping
        due = step % max(self._period, self._ctx.config.checkpoint_every // self._period * self._period) == 0
        control.should_save = self.stopped or due
        control.should_training_stop = control.should_training_stop or self.stopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Publish the trainer's checkpoint as the stage's."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        for name in NOT_KEPT:
            (folder / name).unlink(missing_ok=True)
        if self._on_save is not None:
            self._on_save(folder)
        self._ctx.checkpoints.note(disk_seconds=time.perf_counter() - self._ended)
        self._ctx.checkpoints.save(self._offset + state.global_step, folder)
        self._ctx.checkpoints.note(pause_seconds=time.perf_counter() - self._ended)
        shutil.rmtree(folder)


def check(ctx: Context[Any], step: int, row: Mapping[str, float]) -> None:
    """Raise ConfigError when training diverged."""
    for name, what in (("loss", "the loss"), ("grad_norm", "the gradient norm")):
        if name in row and not math.isfinite(row[name]):
            raise ConfigError(
                f"{ctx.node}: {what} is {row[name]} at step {step}: training diverged; lower learning_rate (now"
                f" {ctx.config.learning_rate})"
            )


def train(ctx: Context[Any], trainer: Trainer, bridge: ContextCallback, checkpoint: Path | None) -> None:
    """Train to the end. Raises Preempted after a last checkpoint when asked to stop."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(bridge)
    bridge.started = time.perf_counter()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if bridge.stopped:
        raise Preempted(f"stopped at step {bridge.step} of {bridge.total}; the next run goes on from there")
