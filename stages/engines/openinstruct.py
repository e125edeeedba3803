"""Engine `open-instruct`: SFT and DPO by the programs that Tülu 3, and the paper, were tuned with.

Commit d208aa371976a09152f61991951e981573e7582f (2025-03-31), which still has `--reduce_loss sum`. What its source says and this
module is built around (README of containers/open-instruct has the places):

- The result is `pytorch_model*.bin`, in bf16. It is read with `weights_only=True` and becomes safetensors.
- A tokenizer without padding gets `<pad>`, and the embeddings grow. Given `<unk>` as padding, they stay as they are.
- finetune.py resumes exactly only between epochs: in the middle of one it skips the seen batches in every later epoch again.
- dpo_tune_cache.py loads a checkpoint *before* it computes the reference's log-probabilities, so a resumed run compares itself with
  itself. DPO therefore starts over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stages.core.contracts import Context
from stages.core.interpreters import interpreter
from stages.engines import process
from stages.engines.exchange import link_tree, load_weights, prepare_parent, read_torch, write_json, write_rows
from stages.finetuning.settings import SupervisedConfig
from stages.finetuning.trainer import check

COMMIT = "d208aa371976a09152f61991951e981573e7582f"
PROGRAM = Path(__file__).parent / "programs" / "run_open_instruct.py"
STEP = re.compile(r"Step: (\d+), LR: ([^\s,]+), Loss: ([^\s,]+)(?:, TPS: (\S+))?")
TOTAL = re.compile(r"Total optimization steps = (\d+)")
COMPLETED = "COMPLETED"
"""File that upstream writes into a checkpoint when it is whole."""


@dataclass(frozen=True)
class Recipe:
    """One of the two programs, with the options that only it has."""

    program: str
    options: Mapping[str, Any]
    resumes: bool
    loss_name: str


def sft_recipe(config: SupervisedConfig) -> Recipe:
    """finetune.py. Its loss is summed over the labels of a micro-batch: nats, not nats a token."""
    transforms = ["sft_tulu_tokenize_and_truncate_v1", "sft_tulu_filter_v1"]
    options = {"dataset_transform_fn": transforms, "reduce_loss": "sum", "checkpointing_steps": "epoch", "keep_last_n_checkpoints": -1}
    return Recipe("finetune", options, resumes=True, loss_name="loss_sum")


def dpo_recipe(config: Any) -> Recipe:
    """dpo_tune_cache.py, length-normalised loss over all of the assistant's turns."""
    options = {
        "dataset_transform_fn": ["preference_tulu_tokenize_and_truncate_v1", "preference_tulu_filter_v1"],
        "dpo_loss_type": "dpo_norm",
        "dpo_beta": config.beta,
        "dpo_label_smoothing": config.label_smoothing,
    }
    return Recipe("dpo_tune_cache", options, resumes=False, loss_name="loss")


def arguments(config: SupervisedConfig, recipe: Recipe, folder: Path) -> list[str]:
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
        "per_device_train_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.batch_size // config.micro_batch // config.devices,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_ratio": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "num_train_epochs": config.epochs,
        "gradient_checkpointing": config.recompute == "full",
        "seed": config.seed,
        "logging_steps": config.log_every,
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


def accelerate_config(config: SupervisedConfig, deepspeed: Path) -> dict[str, Any]:
    """`accelerate launch --config_file`: one machine, one process a GPU."""
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"deepspeed_config_file": str(deepspeed), "deepspeed_multinode_launcher": "standard"},
        "mixed_precision": "bf16",
        "num_machines": 1,
        "machine_rank": 0,
        "num_processes": config.devices,
        "main_training_function": "main",
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
        "debug": False,
    }


def deepspeed_config(config: SupervisedConfig) -> dict[str, Any]:
    """ZeRO-3 as upstream's configs/ds_configs/stage3_no_offloading_accelerate.conf, but with its clipping written out.

    Upstream has "auto" there, which accelerate fills with 1.0 (`Accelerator._prepare_deepspeed`), whatever `--clip_grad_norm` says.
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


def train(ctx: Context[Any], model: torch.nn.Module, recipe: Recipe, rows: Iterable[Mapping[str, Any]]) -> None:
    """Tune `model` (the parent's weights) in place. rows: what goes into upstream's JSON lines."""
    config = ctx.config
    python = interpreter(ctx.node, "open-instruct", "= 'trl'")
    device = next(model.parameters()).device
    model.to("cpu")  # the engine needs the GPU's memory
    torch.cuda.empty_cache()
    folder = Path(ctx.scratch) / "open-instruct"
    folder.mkdir()
    prepare_parent(Path(ctx.input("parent").path), folder / "parent")
    write_rows(folder / "train.jsonl", rows)
    write_json(folder / "deepspeed.json", deepspeed_config(config))
    write_json(folder / "accelerate.json", accelerate_config(config, folder / "deepspeed.json"))
    output = folder / "output" / f"{recipe.program}__{config.seed}__0"
    checkpoints = EpochCheckpoints(ctx, output)
    if recipe.resumes:
        checkpoints.restore()
    launch = [python, "-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.json")]
    command = [*launch, str(PROGRAM), recipe.program, *arguments(config, recipe, folder)]
    ctx.log(f"open-instruct {COMMIT[:12]}: {' '.join(command)}")
    env = process.environment(folder)
    process.run(ctx, "open-instruct", command, env=env, on_line=Follower(ctx, recipe.loss_name), on_tick=checkpoints.publish)
    load_weights(model, read_torch(output), "open-instruct")
    model.to(device)


class Follower:
    """Reads upstream's log: steps become metrics and progress, a loss that is not finite ends the run."""

    def __init__(self, ctx: Context[Any], loss_name: str) -> None:
        self._ctx, self._loss_name, self._total = ctx, loss_name, 0

    def __call__(self, line: str) -> None:
        if found := TOTAL.search(line):
            self._total = int(found[1])
        if not (found := STEP.search(line)):
            return
        step, loss = int(found[1]), float(found[3])
        check(self._ctx, step, {"loss": loss})
        row = {self._loss_name: loss, "learning_rate": float(found[2])}
        if found[4]:
            row["tokens_per_second"] = float(found[4])
        self._ctx.metric(step, **row)
        self._ctx.progress(step, self._total or None, "steps")


class EpochCheckpoints:
    """Upstream's folders `epoch_<n>`, published when whole, and put back where upstream looks for them. Number: epochs that are done."""

    def __init__(self, ctx: Context[Any], output: Path) -> None:
        self._ctx, self._output = ctx, output
        self._known: set[str] = set()

    def restore(self) -> None:
        """Put the newest checkpoint of this key where upstream finds it."""
        if (found := self._ctx.checkpoints.latest()) is None:
            return
        name = f"epoch_{found[0] - 1}"
        link_tree(Path(found[1]), self._output / name)
        self._known.add(name)
        self._ctx.log(f"goes on after epoch {found[0]} of {self._ctx.config.epochs}")

    def publish(self) -> None:
        """Publish what is whole and new. Links are published: upstream removes its folders at the end, maybe meanwhile."""
        for path in sorted(self._output.glob("epoch_*"), key=lambda p: int(p.name.split("_")[1])):
            number = int(path.name.split("_")[1]) + 1
            if path.name in self._known or not (path / COMPLETED).is_file():
                continue
            self._known.add(path.name)
            if number >= self._ctx.config.epochs:
                continue  # the end: the model is about to be written
            kept = self._output.parent / f"kept_{number}"
            try:
                link_tree(path, kept)
            except FileNotFoundError:
                continue
            self._ctx.checkpoints.save(number, kept)
