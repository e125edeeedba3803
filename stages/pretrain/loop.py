"""The training loop, the same for both engines: data order, schedule, held-out loss, checkpoints.

Everything that a step depends on is a function of the configuration and the step's number (which windows, which rate)
or lies in the checkpoint (weights, moments, loss scale). So a resumed run repeats an unbroken one exactly.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.core.contracts import ConfigError, Context, InputError, Preempted
from stages.formats.shards import Shards
from stages.pretrain.engine import Batch, Engine, Update
from stages.pretrain.spec import PretrainConfig
from stages.pretrain.world import World

STATE = "state.json"


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Rate of optimizer step `step` (from 0): linear warmup, then a cosine whose last step has min_lr_ratio x the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    floor = config.min_lr_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def window_numbers(seed: int, windows: int, start: int, count: int) -> np.ndarray:
    """Numbers of windows start .. start + count of the endless sequence of seeded permutations, one an epoch."""
    numbers: list[np.ndarray] = []
    while count:
        epoch, offset = divmod(start, windows)
        part = np.random.default_rng([seed, epoch]).permutation(windows)[offset : offset + count]
        numbers.append(part)
        start, count = start + len(part), count - len(part)
    return np.concatenate(numbers)


class Trainer:
    """One phase of training. Every process of the world runs the same steps on its part of each batch."""

    def __init__(
        self, ctx: Context[PretrainConfig], engine: Engine, train: Shards, heldout: Shards | None, world: World
    ) -> None:
        self.ctx, self.config, self.engine, self.train, self.heldout, self.world = ctx, ctx.config, engine, train, heldout, world
        self.device = world.device
        self.step = self.skipped = 0
        self.loss = self.val_loss = math.nan
        self.seconds = 0.0
        self.stopping = False
        self._saver = Saver(ctx, world)

    @property
    def batch_tokens(self) -> int:
        """Tokens in one optimizer step."""
        return self.config.batch_windows * self.config.sequence_length

    def run(self) -> None:
        """Train to the last step. Raises Preempted after a last checkpoint when asked to stop."""
        config = self.config
        self._resume()
        while self.step < config.steps:
            started = time.perf_counter()
            self.loss, norm = self._optimizer_step()
            self.step += 1
            elapsed = time.perf_counter() - started
            self.seconds += elapsed
            self._tell(norm, self.batch_tokens / elapsed)
            done = self.step == config.steps
            if not done and self.stopping:
                self._save()
                self._saver.wait()
                raise Preempted(f"stopped at step {self.step} of {config.steps}; the next run goes on from there")
            if not done and self.step % config.checkpoint_every == 0:
                self._save()
        self._saver.wait()

    def _tell(self, norm: float, speed: float) -> None:
        config, done = self.config, self.step == self.config.steps
        row: dict[str, float] = {}
        if self.heldout is not None and (done or self.step % config.eval_every == 0):
            self.val_loss = row["val_loss"] = self.heldout_loss()
        if row or done or self.step % config.log_every == 0 or self.step == 1:
            rate = learning_rate(config, self.step - 1)
            row = {"loss": self.loss, "learning_rate": rate, "grad_norm": norm, "tokens_per_second": speed, **row}
            self.ctx.metric(self.step, tokens=self.step * self.batch_tokens, **row)
        self.ctx.progress(self.step * self.batch_tokens, config.steps * self.batch_tokens, "tokens")
        self.stopping = self.world.sums(float(self.ctx.stopping))[0] > 0  # all stop after the same step, or none

    def _batch(self, shards: Shards, numbers: np.ndarray, sequences: np.ndarray | None = None) -> Batch:
        ids, documents = shards.batch(numbers)
        own = None if sequences is None else torch.from_numpy(np.asarray(sequences, np.int64))
        if not self.config.document_mask:
            return Batch(torch.from_numpy(ids).to(self.device), None, own, ids.shape[0] * (ids.shape[1] - 1))
        predicted = int((documents[:, 1:] == documents[:, :-1]).sum())
        return Batch(torch.from_numpy(ids).to(self.device), torch.from_numpy(documents).to(self.device), own, predicted)

    def _optimizer_step(self) -> tuple[float, float]:
        """One step over a global batch: (mean loss of its tokens, gradient norm before clipping)."""
        config, world = self.config, self.world
        if self.device.type == "cuda":  # a GPU's own dropout: a function of the step, so that a resumed run repeats it
            torch.cuda.manual_seed(hash((config.seed, self.step, world.rank)) % (1 << 63))
        first, size = self.step * config.batch_windows, config.micro_batch
        sequences = world.share(np.arange(first, first + config.batch_windows))  # numbers in the whole run
        numbers = world.share(window_numbers(config.seed, len(self.train), first, config.batch_windows))
        batches = [self._batch(self.train, numbers[i : i + size], sequences[i : i + size]) for i in range(0, len(numbers), size)]
        predicted = max(1.0, world.sums(float(sum(batch.predicted for batch in batches)))[0])
        update = self.engine.step(batches, learning_rate(config, self.step), predicted)
        mean = world.total(update.loss)[0] / predicted
        self._check(mean, update)
        return mean, update.norm

    def _check(self, loss: float, update: Update) -> None:
        if math.isfinite(loss) and math.isfinite(update.norm):
            return
        if update.overflow and math.isfinite(loss):
            self.skipped += 1  # the engine has left this step out and made its scale smaller
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {update.norm}"
        raise ConfigError(
            f"{self.ctx.node}: {what} at step {self.step + 1}: training diverged; lower learning_rate "
            f"(now {self.config.learning_rate}) or raise warmup_steps (now {self.config.warmup_steps})"
        )

    def heldout_loss(self) -> float:
        """Mean loss of the tokens of the first `eval_windows` held-out windows, shared by the parts of the world."""
        assert self.heldout is not None
        total, predicted = 0.0, 0
        count, size, parts = min(len(self.heldout), self.config.eval_windows), self.config.micro_batch, self.world.data_size
        for start in range(0, count, size * parts):
            own = np.arange(start + size * self.world.data_rank, min(start + size * (self.world.data_rank + 1), count))
            batch = self._batch(self.heldout, own if len(own) else np.zeros(1, np.int64))
            loss = self.engine.evaluate(batch)  # a process without a window goes along: the weights are gathered from all
            if len(own):
                total, predicted = total + loss, predicted + batch.predicted
        self.engine.rest()
        return self.world.total(total)[0] / max(1.0, self.world.sums(float(predicted))[0])

    # --- checkpoints ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        own = {"step": self.step, "skipped": self.skipped, "seconds": self.seconds, "val_loss": self.val_loss}
        self._saver.save(self.step, {**own, **self.engine.state()}, self.engine.save)

    def _resume(self) -> None:
        found = self.ctx.checkpoints.latest()
        if found is None:
            return
        state = json.loads((found[1] / STATE).read_text(encoding="utf-8"))
        self.step, self.skipped, self.seconds, self.val_loss = (state[k] for k in ("step", "skipped", "seconds", "val_loss"))
        self.engine.load(found[1], state, self.step - self.skipped)


class Saver:
    """Writes and uploads checkpoints beside the training, one at a time."""

    def __init__(self, ctx: Context[PretrainConfig], world: World) -> None:
        self._ctx, self._world = ctx, world
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[Path], Callable[[], None]]) -> None:
        """Copy the state, then write it and upload it in the background. Waits for the save before, if that is still on."""
        self.wait()
        folder = Path(self._ctx.scratch) / f"save-{step}"
        folder.mkdir()
        if self._world.rank == 0:
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
        written = write(folder)
        self._thread = threading.Thread(target=self._publish, args=(step, folder, written), daemon=True)
        self._thread.start()

    def _publish(self, step: int, folder: Path, written: Callable[[], None]) -> None:
        try:
            written()
            parts = self._world.gathered(self._ctx.checkpoints.upload(step, folder))
            if self._world.rank == 0:
                self._ctx.checkpoints.commit(step, [entry for part in parts for entry in part])
            shutil.rmtree(folder)
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait for the save that is on. Raises what it failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error


def open_shards(ctx: Context[PretrainConfig], warn: Callable[[str], None]) -> tuple[Shards, Shards | None]:
    """The phase's training windows, and its held-out ones if the shards have some and they are wanted."""
    config, folder = ctx.config, ctx.input("tokens").path
    train = Shards.open(folder)
    if train.sequence_length != config.sequence_length:
        raise ConfigError(f"{ctx.node}.sequence_length is {config.sequence_length}, its windows have {train.sequence_length}")
    if not len(train):
        raise InputError(f"{ctx.node}: its shards hold no window")
    epochs = config.steps * config.batch_windows / len(train)
    if epochs > 4:  # repeating data beyond four epochs is worth little (Muennighoff et al. 2023, arXiv 2305.16264)
        warn(f"the token budget repeats the data {epochs:.1f} times")
    wanted = config.eval_windows > 0 and (Path(folder) / "heldout" / "index.json").is_file()
    return train, Shards.open(Path(folder) / "heldout") if wanted else None
