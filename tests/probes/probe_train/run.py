"""Run `probe_train`: a sum instead of a model, exact whether it was interrupted or not."""

from __future__ import annotations

import shutil
import time

from stages.probe_train.spec import TrainConfig

from stages.core.context import Context
from stages.core.errors import Preempted
from stages.core.events import own_rank


def run(ctx: Context[TrainConfig]) -> None:
    """Add up the steps, with a checkpoint every `save_every` and when stopped."""
    config, step, value = ctx.config, 0, 0.0
    resumed = ctx.checkpoints.latest()
    if resumed is not None:
        step, value = resumed[0], float((resumed[1] / "state/value.txt").read_text())
    ctx.log(f"begins at step {step}")
    while step < config.steps:
        if ctx.stopping:
            _save(ctx, step, value)
            raise Preempted(f"stopped at step {step}")
        time.sleep(config.step_seconds)
        step += 1
        value += config.learning_rate * step
        ctx.metric(step, loss=1 / value)
        if step % config.save_every == 0:
            _save(ctx, step, value)
        if resumed is None and step == config.die_after:
            raise Preempted(f"lost the machine after step {step}")
    (ctx.output("model") / "model.txt").write_text(f"{value:.6f}\n")
    facets = {name: ctx.input("shards").facets[name] for name in ("tokenizer_digest", "vocab_size")}
    ctx.describe(
        "model",
        facets={**facets, "architecture": "probe", "context_length": 16, "dtype": "f32", "chat_template_digest": ""},
    )
    ctx.stat(last_step=step)


def _save(ctx: Context[TrainConfig], step: int, value: float) -> None:
    if own_rank() > 0:
        return
    folder = ctx.scratch / "save"
    (folder / "state").mkdir(parents=True)
    (folder / "state/value.txt").write_text(repr(value))
    ctx.checkpoints.save(step, folder)
    shutil.rmtree(folder)
