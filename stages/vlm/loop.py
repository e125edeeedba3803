"""The training loop: single stage, projector and decoder; one process, or FSDP2 over several.

A step's rows and rate follow from its number; weights and moments are in the checkpoint, under names that do not depend on how
many processes wrote it. So a stopped run goes on exactly, and may go on with another number of processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from stages.core.contracts import ConfigError, Preempted
from stages.modeling.recompute import selective_contexts
from stages.vision.modeling_moxin_vlm import MoxinVLM
from stages.vlm.batches import Rows, epoch_batches, steps_an_epoch
from stages.vlm.spec import VlmConfig

STATE = "state.pt"
Look = Callable[[list[str]], Tensor]
"""Patch features [B, P, F] of images by name: stored ones, or the towers'."""


class Reporter(Protocol):
    """What the loop needs of a stage's context."""

    @property
    def stopping(self) -> bool: ...

    def metric(self, step: int, **values: float) -> None: ...

    def progress(self, done: float, total: float | None = None, unit: str = "") -> None: ...

    def log(self, message: str, level: Literal["debug", "info", "warning", "error"] = "info") -> None: ...

    def save(self, step: int, folder: Path) -> None: ...


def learning_rate(config: VlmConfig, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warmup, then a cosine that ends at 0."""
    warmup = round(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(model: MoxinVLM, config: VlmConfig) -> torch.optim.AdamW:
    """AdamW; no decay of biases and other vectors."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


class Trainer:
    """Trains a model that was built without its towers."""

    def __init__(self, reporter: Reporter, config: VlmConfig, model: MoxinVLM, rows: Rows, look: Look, device: torch.device, scratch: Path) -> None:
        self.reporter, self.config, self.rows, self.look, self.device, self.scratch = reporter, config, rows, look, device, scratch
        self.world, self.rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        if config.recompute != "none":
            selective = {"context_fn": selective_contexts} if config.recompute == "selective" else {}
            model.language_model.activation_checkpointing_enable({"use_reentrant": False, **selective})
        nn.Module.to(model, device)
        self.model = self._shard(model) if dist.is_initialized() else model
        self.optimizer = make_optimizer(self.model, config)
        images = int((rows.images >= 0).sum())
        self.epoch_steps = steps_an_epoch(images, len(rows) - images, config.batch_rows)
        self.steps = config.epochs * self.epoch_steps
        self.step, self.loss, self.seconds, self.tokens = 0, math.nan, 0.0, 0

    def _shard(self, model: MoxinVLM) -> MoxinVLM:
        """FSDP2: each block by itself, then the rest; gradients are reduced in float32."""
        dtype = torch.bfloat16 if self.config.precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
        for block in model.language_model.model.layers:
            fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        return model

    def run(self, resume: Path | None) -> None:
        """Train to the last step. Raises Preempted after a last checkpoint when asked to stop."""
        config = self.config
        if resume is not None:
            self._load(resume)
        self.model.train()
        for step, numbers in self._batches(self.step):
            started = time.perf_counter()
            self.loss, norm, tokens = self._optimizer_step(numbers)
            self.step = step + 1
            self.seconds, self.tokens = self.seconds + time.perf_counter() - started, self.tokens + tokens
            self._tell(norm, tokens / (time.perf_counter() - started))
            if self.step == self.steps:
                return
            if self._stopping():
                self._save()
                raise Preempted(f"stopped at step {self.step} of {self.steps}; the next run goes on from there")
            if self.step % config.checkpoint_every == 0:
                self._save()

    def _batches(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
        epoch, offset = divmod(start, self.epoch_steps)
        for number in range(epoch, self.config.epochs):
            batches = epoch_batches(self.rows.lengths, self.rows.images, self.config.batch_rows, self.config.seed, number)
            for at in range(offset if number == epoch else 0, len(batches)):
                yield number * self.epoch_steps + at, batches[at]

    def _optimizer_step(self, numbers: np.ndarray) -> tuple[float, float, int]:
        """One step over a global batch: mean loss of its answer tokens, gradient norm before clipping, tokens."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, self.steps)
        answers = int(self.rows.answer_counts[numbers].sum())
        mine = numbers[self.rank :: self.world]  # sorted by length: each process gets about as much work
        total = torch.zeros((), device=self.device)
        for start in range(0, len(mine), config.micro_rows):
            part = mine[start : start + config.micro_rows]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16" and self.world == 1):
                loss = self.model(**self._inputs(part), label_count=answers).loss
            (loss * self.world).backward()  # FSDP2 takes the mean over processes
            total += loss.detach()
        if self.world > 1:
            dist.all_reduce(total)
        norm: Any = torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], config.grad_clip)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self._check(float(total), norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(total), norm, int(self.rows.lengths[numbers].sum())

    def _inputs(self, numbers: np.ndarray) -> dict[str, Tensor | None]:
        pad_id = int(self.model.config.pad_token_id or 0)
        inputs: dict[str, Tensor | None] = {k: v.to(self.device) for k, v in self.rows.tensors(numbers, pad_id).items()}
        images = self.rows.images[numbers]
        features = None if images[0] < 0 else self.look([self.rows.names[i] for i in images]).to(self.device)
        return inputs | {"patch_features": features}

    def _check(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
        raise ConfigError(f"{what} at step {self.step + 1}: training diverged; lower learning_rate (now {self.config.learning_rate})")

    def _tell(self, norm: float, speed: float) -> None:
        if self.rank:
            return
        if self.step in (1, self.steps) or self.step % self.config.log_every == 0:
            rate = learning_rate(self.config, self.step - 1, self.steps)
            self.reporter.metric(self.step, loss=self.loss, learning_rate=rate, grad_norm=norm, tokens_per_second=speed)
        self.reporter.progress(self.step, self.steps, "steps")

    def _stopping(self) -> bool:
        """Whether to stop; all processes decide alike."""
        if self.world == 1:
            return self.reporter.stopping
        flag = torch.tensor(float(self.rank == 0 and self.reporter.stopping), device=self.device)
        dist.broadcast(flag, 0)
        return bool(flag)

    # --- checkpoints ---------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """The trained weights, whole and on the CPU; with several processes on the first only."""
        return self._state()[0]

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_state_dict(self.model, self.optimizer, options=options)

    def _save(self) -> None:
        model, optimizer = self._state()
        if self.rank == 0:
            folder = self.scratch / f"save-{self.step}"
            folder.mkdir(exist_ok=True)
            counts = {"step": self.step, "seconds": self.seconds, "tokens": self.tokens}
            torch.save({"model": model, "optimizer": optimizer, **counts}, folder / STATE)
            self.reporter.save(self.step, folder)
            (folder / STATE).unlink(missing_ok=True)
        if self.world > 1:
            dist.barrier()

    def _load(self, folder: Path) -> None:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        self.step, self.seconds, self.tokens = state["step"], state["seconds"], state["tokens"]
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self.world > 1)
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options)
