"""Run a TRL trainer under a stage's context: metrics, checkpoints, exact resume, orderly stops, divergence.

A checkpoint is the trainer's own folder (weights, optimizer, scheduler, random state, position), less what is a pickle,
with the state of the guard of its steps. On resume transformers reads its tensors with `weights_only=True`, skips the
rows that were seen and restores the random state.

Steps are judged as those of pre-training are (`stages.lib.training.spikes`), before their update. One that would do
harm changes nothing: AdamW passes over parameters that have no gradient. There is no way back to other data, as the
order of rows is the trainer's own: too many in a row end the training.
"""

from __future__ import annotations

import json
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
from stages.lib.training.spikes import SpikeGuard

NOT_KEPT = ("training_args.bin", "README.md")
"""Of a trainer's checkpoint: a pickle that resuming does not need, and a card of an unfinished model."""
NO_PROBABILITIES = "probability tensor contains"
"""In PyTorch's error where a token is to be drawn, and the model gives no numbers."""
GUARD = "spikes.json"
"""In a checkpoint: the state of the guard of its steps."""


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


class StepNumbers:
    """Loss and gradient norm of the step at hand, taken from a trainer before the step's update."""

    def __init__(self, trainer: Trainer) -> None:
        self._losses: list[torch.Tensor] = []
        self._norm: Any = math.nan
        micro_step, clip = trainer.training_step, trainer.accelerator.clip_grad_norm_

        def training_step(*given: Any, **named: Any) -> torch.Tensor:
            loss = micro_step(*given, **named)
            self._losses.append(loss)
            # the trainer's running sum would never be a number again
            return torch.where(torch.isfinite(loss), loss, torch.zeros_like(loss))

        def clip_grad_norm_(*given: Any, **named: Any) -> Any:  # which the trainer calls once a step, clipping or not
            self._norm = clip(*given, **named)
            return self._norm

        trainer.training_step = training_step  # type: ignore[method-assign]
        trainer.accelerator.clip_grad_norm_ = clip_grad_norm_  # type: ignore[method-assign]

    def take(self) -> tuple[float, float]:
        """Loss, and norm before clipping."""
        loss, norm = float(torch.stack(self._losses).sum()), float(self._norm)
        self._losses.clear()
        return loss, norm


class ContextCallback(TrainerCallback):
    """Between a trainer and a context. `offset`: steps that earlier trainers of this attempt took; `guard`: of all of
    them.
    """

    def __init__(
        self,
        ctx: Context[Any],
        names: Mapping[str, str],
        *,
        offset: int = 0,
        total: int | None = None,
        period: int = 1,
        on_save: Callable[[Path], None] | None = None,
        guard: SpikeGuard | None = None,
    ) -> None:
        self.guard = guard or SpikeGuard(ctx.config.spikes)
        self.numbers: StepNumbers | None = None
        """Of the trainer that this is given to."""
        self._trouble: dict[str, float] = {}
        """What is wrong with the last step."""
        self._loss = self._norm = math.nan
        self._judged = 0
        """The last step that was judged, counted from 1."""
        self._ctx, self._names, self._offset, self._period, self._on_save = ctx, names, offset, period, on_save
        self.stopped, self.step, self.total = False, offset, total
        self.started = self._ended = 0.0
        self._processor = 0.0
        self._clocks: dict[str, float] = {}
        """What the last step took, for its row."""
        self._due = False
        """Whether a checkpoint was due while updates were left out."""

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

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Whether the step may change the weights."""
        assert self.numbers is not None
        self._judged = state.global_step + 1
        self._loss, self._norm = self.numbers.take()
        self._trouble = self.guard.trouble(self._loss, self._norm)
        if not self._trouble:
            self.guard.accept(self._loss, self._norm)
            return
        kwargs["model"].zero_grad()
        step = self._offset + self._judged
        self._ctx.log(self.guard.skip(step, self._trouble, self._loss, self._norm), "warning")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Every step: pass on each `log_every`-th, and each that was left out. Raises ConfigError after too many."""
        if not logs or "loss" not in logs:
            return
        row = {mine: float(logs[theirs]) for theirs, mine in self._names.items() if theirs in logs}
        step, done = state.global_step, state.global_step >= state.max_steps
        if self._trouble:
            row |= {"loss": self._loss, "grad_norm": self._norm}
            row = {name: value for name, value in row.items() if math.isfinite(value)} | self._trouble
            row["skipped"] = 1.0
        if self._trouble or step == 1 or done or step % self._ctx.config.log_every == 0:
            self._ctx.metric(self._offset + step, **row, **self._clocks)
        if self.guard.exhausted or (done and not self.guard.finite):
            raise self.diverged()

    def diverged(self, what: str = "") -> ConfigError:
        """At the step that the trouble began with. what: of the step that comes next; else of the last one."""
        step = self._offset + self._judged - self.guard.streak + 1
        return diverged(self._ctx, what or self.guard.wrong(self._loss, self._norm), step)

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
        every = max(self._period, self._ctx.config.checkpoint_every // self._period * self._period)
        self._due = self._due or self.stopped or step % every == 0
        if self._due and not self.guard.streak:  # in the middle of trouble none is taken
            control.should_save, self._due = True, False
        control.should_training_stop = control.should_training_stop or self.stopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Publish the trainer's checkpoint as the stage's. Asked to stop by then, no step follows: what a stop would
        save is saved.
        """
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        for name in NOT_KEPT:
            (folder / name).unlink(missing_ok=True)
        keep_guard(self.guard, folder)
        if self._on_save is not None:
            self._on_save(folder)
        self._ctx.checkpoints.note(disk_seconds=time.perf_counter() - self._ended)
        self._ctx.checkpoints.save(self._offset + state.global_step, folder)
        self._ctx.checkpoints.note(pause_seconds=time.perf_counter() - self._ended)
        shutil.rmtree(folder)
        if self._ctx.stopping:
            self.stopped = control.should_training_stop = True


def check(ctx: Context[Any], step: int, row: Mapping[str, float]) -> None:
    """Raise ConfigError when a training whose engine has no guard diverged."""
    for name, what in (("loss", "the loss"), ("grad_norm", "the gradient norm")):
        if name in row and not math.isfinite(row[name]):
            raise diverged(ctx, f"{what} is {row[name]}", step)


def diverged(ctx: Context[Any], what: str, step: int) -> ConfigError:
    """What a training ends with at a step, counted from 1."""
    return ConfigError(
        f"{ctx.node}: {what} at step {step}: training diverged; lower learning_rate (now {ctx.config.learning_rate})"
    )


def keep_guard(guard: SpikeGuard, folder: Path) -> None:
    """Put the state of a guard into a checkpoint."""
    (folder / GUARD).write_text(json.dumps(guard.state()), encoding="utf-8")


def restore_guard(guard: SpikeGuard, folder: Path | None) -> None:
    """Go on as a checkpoint has it; one of an engine without a guard has nothing."""
    if folder is not None and (folder / GUARD).is_file():
        guard.restore(json.loads((folder / GUARD).read_text(encoding="utf-8")))


def train(ctx: Context[Any], trainer: Trainer, bridge: ContextCallback, checkpoint: Path | None) -> None:
    """Train to the end. Raises Preempted after a last checkpoint when asked to stop, ConfigError where it diverged."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(bridge)
    bridge.numbers = StepNumbers(trainer)
    restore_guard(bridge.guard, checkpoint)
    bridge.started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except RuntimeError as error:
        if NO_PROBABILITIES not in str(error):
            raise
        raise bridge.diverged("the probabilities of the next token are no numbers") from error
    if bridge.stopped:
        where = "the checkpoint before" if bridge.guard.streak else "there"
        raise Preempted(f"stopped at step {bridge.step} of {bridge.total}; the next run goes on from {where}")
