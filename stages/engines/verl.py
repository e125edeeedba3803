"""Engine `verl` 0.9.1 for GRPO: one run of `verl.trainer.main_ppo` for each stretch, each from the merged weights of the one before.

Hydra overrides are derived from the stage's configuration; the reward is this repository's verifier (`programs/reward.py`). The
problems' order is the stage's own, written out as Parquet, one row a prompt, and read once without shuffling. Stretches, checkpoints
and resume: `stretches.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stages.core.contracts import Context
from stages.engines import process, stretches
from stages.engines.stretches import Rows, Stretch

VERSION = "0.9.1"
REWARD = Path(__file__).parent / "programs" / "reward.py"
STEP = re.compile(r"step:(\d+) - (.*)")
VALUE = re.compile(r"([\w/@.]+):(?:np\.\w+\()?([-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|nan|inf))", re.IGNORECASE)
METRICS = {
    "actor/pg_loss": "loss",
    "actor/lr": "learning_rate",
    "actor/grad_norm": "grad_norm",
    "actor/kl_loss": "kl",
    "actor/entropy": "entropy",
    "actor/pg_clipfrac": "clip_fraction",
    "critic/score/mean": "reward",
    "response_length/mean": "response_length",
    "response_length/clip_ratio": "truncated",
}
"""verl's names and ours; what a log does not have is left out."""


def overrides(config: Any, number: int, folder: Path, model: Path) -> dict[str, Any]:
    """verl's settings of one stretch, where they differ from its own. folder: where the stretch's files lie."""
    here = config.stages[number]
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    reward = "reward.custom_reward_function"
    return {
        "algorithm.adv_estimator": "grpo",
        "algorithm.use_kl_in_reward": False,
        "data.train_files": str(folder / "train.parquet"),
        "data.val_files": str(folder / "val.parquet"),
        "data.train_batch_size": config.prompts,
        "data.max_prompt_length": config.max_prompt,
        "data.max_response_length": here.max_response,
        "data.shuffle": False,
        "data.seed": config.seed,
        "data.dataloader_num_workers": 1,
        "actor_rollout_ref.model.path": str(model),
        "actor_rollout_ref.model.use_remove_padding": True,
        "actor_rollout_ref.model.enable_gradient_checkpointing": config.recompute == "full",
        f"{actor}.strategy": "fsdp2",
        f"{actor}.optim.lr": config.learning_rate,
        f"{actor}.optim.weight_decay": config.weight_decay,
        f"{actor}.optim.betas": [config.beta1, config.beta2],
        f"{actor}.optim.clip_grad": config.grad_clip,
        f"{actor}.optim.lr_scheduler_type": "constant",
        f"{actor}.ppo_mini_batch_size": config.prompts // config.minibatches,  # in prompts
        f"{actor}.ppo_epochs": 1,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": config.tokens_per_device,
        f"{actor}.clip_ratio": config.clip,
        f"{actor}.clip_ratio_low": config.clip,
        f"{actor}.clip_ratio_high": config.clip,
        f"{actor}.clip_ratio_c": 1e6,  # newer verl clips a second time, at 3.0, which DeepScaleR's fork did not
        f"{actor}.use_kl_loss": config.kl > 0,
        f"{actor}.kl_loss_coef": config.kl,
        f"{actor}.kl_loss_type": "low_var_kl",
        f"{actor}.entropy_coeff": config.entropy,
        f"{actor}.loss_agg_mode": "token-mean",
        f"{actor}.data_loader_seed": config.seed,
        "actor_rollout_ref.ref.fsdp_config.param_offload": True,  # DeepScaleR
        f"{rollout}.name": "vllm",
        f"{rollout}.n": here.group,
        f"{rollout}.temperature": config.temperature,
        f"{rollout}.top_p": 1.0,
        f"{rollout}.top_k": -1,
        f"{rollout}.seed": config.seed,
        f"{rollout}.tensor_model_parallel_size": 1,  # DeepScaleR
        f"{rollout}.gpu_memory_utilization": 0.85,  # DeepScaleR
        "reward.num_workers": config.verify_workers,
        f"{reward}.path": str(REWARD),
        f"{reward}.name": "compute_score",
        f"+{reward}.reward_kwargs.rule": config.rule,
        f"+{reward}.reward_kwargs.right": config.reward_right,
        f"+{reward}.reward_kwargs.wrong": config.reward_wrong,
        "trainer.logger": ["console"],
        "trainer.project_name": "moxin",
        "trainer.experiment_name": "grpo",
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": config.devices,
        "trainer.total_epochs": 1,
        "trainer.total_training_steps": here.steps,
        "trainer.save_freq": config.checkpoint_every,
        "trainer.test_freq": -1,
        "trainer.val_before_train": False,  # the stage measures parent and child itself
        "trainer.resume_mode": "auto",
        "trainer.default_local_dir": str(folder / "checkpoints"),
        "+ray_kwargs.ray_init.include_dashboard": False,
    }


def words(values: Mapping[str, Any]) -> list[str]:
    """Overrides as Hydra's command line has them. Strings are quoted: a path may hold what its grammar gives a meaning."""
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def write_parquet(path: Path, rows: Rows) -> None:
    """Prompts in verl's schema. rows: `{"prompt": turns, "answer": text}`."""
    values = [
        {
            "data_source": "moxin",
            "prompt": row["prompt"],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": row["answer"]},
            "extra_info": {"split": "train", "index": index},
        }
        for index, row in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(values), path)


class Verl:
    """verl as a program of stretches."""

    name, version = "verl", VERSION

    def command(self, stretch: Stretch, rows: Rows) -> list[str]:
        """Parquet, and Hydra overrides."""
        every = list(rows)
        write_parquet(stretch.folder / "train.parquet", every)
        write_parquet(stretch.folder / "val.parquet", every[:1])  # verl wants one; it is never measured on
        settings = overrides(stretch.ctx.config, stretch.number, stretch.folder, stretch.start)
        return [stretch.python, "-m", "verl.trainer.main_ppo", *words(settings)]

    def read(self, line: str) -> tuple[int, dict[str, float]] | None:
        """verl's console log: `step:<n> - name:value - ...`."""
        if not (found := STEP.search(line)):
            return None
        values = {name: float(value) for name, value in VALUE.findall(found[2])}
        return int(found[1]), {mine: values[theirs] for theirs, mine in METRICS.items() if theirs in values}

    def collect(self, stretch: Stretch) -> Path:
        """Merge the last checkpoint's shards."""
        local, merged = stretch.checkpoints / f"global_step_{stretch.steps}" / "actor", stretch.folder / "merged"
        command = [stretch.python, "-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", str(local), "--target_dir", str(merged)]
        process.run(stretch.ctx, self.name, command, env=stretch.env, on_line=lambda line: None)
        return merged


def reinforce(ctx: Context[Any], model: torch.nn.Module, schedule: Callable[[int], Rows]) -> None:
    """Train `model` (the parent's weights) in place. schedule: the prompts of a stretch, in order."""
    stretches.reinforce(ctx, model, schedule, Verl(), RAY_USAGE_STATS_ENABLED="0", RAY_COLOR_PREFIX="0")
