"""Engine `open-instruct`: SFT and DPO by the programs that Tülu 3, and the paper, were tuned with.

Commit d208aa371976a09152f61991951e981573e7582f (2025-03-31), which still has `--reduce_loss sum`. What its source says
and this module is built around (README of containers/open-instruct has the places):

- The result is `pytorch_model*.bin`, in bf16. It is read with `weights_only=True` and becomes safetensors.
- A tokenizer without padding gets `<pad>`, and the embeddings grow. Given `<unk>` as padding, they stay as they are.
- It counts the steps of an epoch as if a last batch that is not full were one; DeepSpeed goes on filling it from the
  next epoch, and from
  there on the two disagree about when a step is taken, and a checkpoint loses what is gathered in between. So whole
  batches are given.
- It averages a logged loss wrongly when an epoch ends between two rows of its log. So each step is logged, and chosen
  from here.
- What keeps it from resuming at a step is repaired by `programs/run_open_instruct.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.core.interpreters import interpreter
from stages.lib.engines import process
from stages.lib.engines.checkpoint_conversion import (
    link_tree,
    load_weights,
    prepare_parent,
    read_torch,
    write_json,
    write_rows,
)
from stages.lib.finetuning.trl_trainer import check
from stages.lib.finetuning.tuning_config import SupervisedConfig

COMMIT = "d208aa371976a09152f61991951e981573e7582f"
PROGRAM = Path(__file__).parent / "programs" / "run_open_instruct.py"
STEP = re.compile(r"Step: (\d{1,12}), LR: ([^\s,]+), Loss: ([^\s,]+)(?:, TPS: (\S+))?")
PLANNED = re.compile(r"(Num examples|Total optimization steps) = (\d{1,12})")
COMPLETED = "COMPLETED"
"""File by which upstream knows a checkpoint that is whole."""
REFERENCE, READY = "reference", "ready"
"""Folders of the reference's log-probabilities, and of whole checkpoints to take (programs/run_open_instruct.py)."""
POSITION = "position.json"


@dataclass(frozen=True)
class Recipe:
    """One of the two programs, with the options that only it has."""

    program: str
    options: Mapping[str, Any]
    loss_name: str


def sft_recipe(config: SupervisedConfig) -> Recipe:
    """finetune.py. Its loss is summed over the labels of a micro-batch: nats, not nats a token."""
    transforms = ["sft_tulu_tokenize_and_truncate_v1", "sft_tulu_filter_v1"]
    return Recipe("finetune", {"dataset_transform_fn": transforms, "reduce_loss": "sum"}, loss_name="loss_sum")


def dpo_recipe(config: Any) -> Recipe:
    """dpo_tune_cache.py, length-normalised loss over all of the assistant's turns."""
    options = {
        "dataset_transform_fn": ["preference_tulu_tokenize_and_truncate_v1", "preference_tulu_filter_v1"],
        "dpo_loss_type": "dpo_norm",
        "dpo_beta": config.beta,
        "dpo_label_smoothing": config.label_smoothing,
    }
    return Recipe("dpo_tune_cache", options, loss_name="loss")


def arguments(config: SupervisedConfig, recipe: Recipe, folder: Path, gpus: int) -> list[str]:
    """The program's options. folder: where everything of this attempt lies."""
    values: dict[str, Any] = {
        "exp_name": recipe.program,
        "model_name_or_path": folder / "parent",
        "use_flash_attn": True,
        "chat_template_name": "tulu",
        "dataset_mixer_list": [folder / "train.jsonl", "1.0"],
        "dataset_mixer_list_splits": ["train"],
        "dataset_local_cache_dir": folder / "cache",
        "max_seq_length": config.max_length,
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": config.global_batch_size // config.micro_batch_size // gpus,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_ratio": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "num_train_epochs": config.epochs,
        "gradient_checkpointing": config.recompute == "full",
        "seed": config.seed,
        "logging_steps": 1,
        "checkpointing_steps": config.checkpoint_every,
        "keep_last_n_checkpoints": 1,
        "output_dir": folder / "output",
        "with_tracking": False,
        "push_to_hub": False,  # on by default, as the next two
        "try_launch_beaker_eval_jobs": False,
        "try_auto_save_to_beaker": False,
        **recipe.options,
    }
    out: list[str] = []
    for name, value in values.items():
        out += [f"--{name}", *(str(v) for v in (value if isinstance(value, list) else [value]))]
    return out


def launch(python: str, gpus: int, deepspeed: Path) -> list[str]:
    """`accelerate launch` as in upstream's docs/tulu3.md: one machine, one process a GPU.

    As options: in a file of accelerate's, `mixed_precision` beside DeepSpeed's own file is refused
    (`_deepspeed_config_checks`).
    """
    options = {
        "mixed_precision": "bf16",
        "num_machines": 1,
        "num_processes": gpus,
        "main_process_port": _free_port(),
        "deepspeed_config_file": deepspeed,
        "deepspeed_multinode_launcher": "standard",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [python, "-m", "accelerate.commands.launch", "--use_deepspeed", *words]


def _free_port() -> int:
    """Of this machine: two engines on one machine cannot both have accelerate's default, 29500."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def deepspeed_config(config: SupervisedConfig) -> dict[str, Any]:
    """ZeRO-3 as upstream's configs/ds_configs/stage3_no_offloading_accelerate.conf, but with its clipping written out.

    Upstream has "auto" there, which accelerate fills with 1.0 (`Accelerator._prepare_deepspeed`), whatever
    `--clip_grad_norm` says.
    """
    return {
        "bf16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "sub_group_size": 1e9,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": config.grad_clip,
        "steps_per_print": 1e5,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }


def whole_batches(ctx: Context[Any], data: Any) -> None:
    """Leave out, and count, the rows at the end that fill no batch. data: encoded rows or pairs, `rows` as positions
    `kept`.

    Raises InputError when there are fewer than a batch.
    """
    size = ctx.config.global_batch_size
    left = len(data.rows) % size
    if left == len(data.rows):
        raise InputError(
            f"{ctx.node}: {left} rows are less than one batch of {size}, and engine 'open-instruct' takes whole ones:"
            " lower global_batch_size"
        )
    if left:
        data.tokens -= sum(len(ids) for row in data.rows[-left:] for name, ids in row.items() if name.endswith("ids"))
        del data.rows[-left:], data.kept[-left:]
        data.removed["at the end, fills no batch"] += left


def train(
    ctx: Context[Any],
    model: torch.nn.Module,
    recipe: Recipe,
    rows: Iterable[Mapping[str, Any]],
    checkpoint: tuple[int, Any] | None,
) -> None:
    """Tune `model` (the parent's weights) in place. rows: what goes into upstream's JSON lines, whole batches of them;
    checkpoint: the newest one.
    """
    config = ctx.config
    python = interpreter(ctx.node, "open-instruct", "= 'trl'")
    folder = Path(ctx.scratch) / "open-instruct"
    folder.mkdir()
    prepare_parent(Path(ctx.input("parent").path), folder / "parent", config.attention_dropout)
    count = write_rows(folder / "train.jsonl", rows)
    write_json(folder / "deepspeed.json", deepspeed_config(config))
    output = folder / "output" / f"{recipe.program}__{config.seed}__0"
    follower = Follower(ctx, recipe.loss_name, count)
    checkpoints = StepCheckpoints(ctx, output, follower)
    checkpoints.restore(checkpoint)
    start = launch(python, ctx.nproc_per_node, folder / "deepspeed.json")
    command = [*start, str(PROGRAM), recipe.program, *arguments(config, recipe, folder, ctx.nproc_per_node)]
    ctx.log(f"open-instruct {COMMIT[:12]}: {' '.join(command)}")
    process.run(
        ctx, "open-instruct", command, env=process.environment(folder), on_line=follower, on_tick=checkpoints.publish
    )
    load_weights(model, read_torch(output), "open-instruct")


class Follower:
    """Reads upstream's log: steps become metrics and progress, a loss that is not finite ends the run. `step`: the last
    one.
    """

    def __init__(self, ctx: Context[Any], loss_name: str, rows: int) -> None:
        self._ctx, self._loss_name, self.step = ctx, loss_name, 0
        self._clock = process.StepClock()
        self.total = rows // ctx.config.global_batch_size * ctx.config.epochs
        self._planned = {"Num examples": rows, "Total optimization steps": self.total}

    def __call__(self, line: str) -> None:
        if match := PLANNED.search(line):
            self._compare(match[1], int(match[2]))
        if not (match := STEP.search(line)):
            return
        rate, loss, speed = (process.number(match[n] or "") for n in (2, 3, 4))
        if rate is None or loss is None:
            return
        self.step = int(match[1])
        check(self._ctx, self.step, {"loss": loss})
        lap = self._clock.lap()
        self._ctx.progress(self.step, self.total, "steps")
        if self.step not in (1, self.total) and self.step % self._ctx.config.log_every:
            return
        row = {self._loss_name: loss, "learning_rate": rate} | lap
        if speed is not None:
            row["tokens_per_second"] = speed
        self._ctx.metric(self.step, **row)

    def _compare(self, name: str, said: int) -> None:
        """Rows that upstream leaves out by itself would move every batch after them, and a resumed run to other
        ones.
        """
        if said != self._planned[name]:
            raise process.EngineError(
                f"open-instruct says {name} = {said}, where {self._planned[name]} were given: it read the rows in"
                " another way"
            )


class StepCheckpoints:
    """Publishes checkpoints, with the reference beside them, and puts the newest one back where upstream looks
    for it.
    """

    def __init__(self, ctx: Context[Any], output: Path, follower: Follower) -> None:
        self._ctx, self._output, self._follower = ctx, output, follower
        self._ready = output.parent / READY

    def restore(self, checkpoint: tuple[int, Any] | None) -> None:
        """Put the newest checkpoint of this key where upstream finds it. Raises ConfigError when it is of another
        number of GPUs.
        """
        if checkpoint is None:
            return
        step, folder, node = checkpoint[0], Path(checkpoint[1]), self._ctx.node
        gpus = json.loads((folder / POSITION).read_text())["gpus"]
        if gpus != self._ctx.nproc_per_node:
            raise ConfigError(
                f"{node}: its checkpoint of step {step} is DeepSpeed's of {gpus} GPUs, this attempt has"
                f" {self._ctx.nproc_per_node}: set resources.{node}.gpus = {gpus} to go on from it, or change"
                f" {node}.seed to begin anew"
            )
        for name in (f"step_{step}", REFERENCE):
            link_tree(folder / name, self._output / name)
        (self._output / f"step_{step}" / COMPLETED).write_text(COMPLETED)
        self._ctx.log(f"goes on after step {step} of {self._follower.total}")

    def publish(self) -> None:
        """Publish the newest one that is ready, once the metrics of its step have come; not the last step's: the model
        is about to be written.
        """
        steps = [int(path.name.removeprefix("step_")) for path in self._ready.glob("step_*")]
        step = max(steps, default=0)
        if not 0 < step <= self._follower.step or step >= self._follower.total:
            return
        kept = self._ready / f".kept_{step}"
        try:
            kept.mkdir()
            os.replace(self._ready / f"step_{step}", kept / f"step_{step}")
        except FileNotFoundError:  # there is a newer one already
            kept.rmdir()
            return
        link_tree(self._output / REFERENCE, kept / REFERENCE)
        write_json(kept / POSITION, {"step": step, "gpus": self._ctx.nproc_per_node})
        self._ctx.checkpoints.save(step, kept)
        shutil.rmtree(kept)
