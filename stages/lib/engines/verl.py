"""Engine `verl` 0.9.1 for GRPO: one run of `verl.trainer.main_ppo` for each phase, each from the merged weights of
the one before.

Hydra overrides are derived from the stage's configuration; the reward is this repository's verifier
(`programs/reward.py`). The problems' order is the stage's own, written out as Parquet, one row a prompt, and read once
without shuffling. Context phases, checkpoints
and resume: `context_phases.py`.
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

from stages.core.context import Context
from stages.lib.engines import context_phases, process
from stages.lib.engines.context_phases import PhaseRun, Rows

VERSION = "0.9.1"
REWARD = Path(__file__).parent / "programs" / "reward.py"
STEP = re.compile(r"step:(\d{1,12}) - (.*)")
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


def overrides(config: Any, number: int, folder: Path, model: Path, gpus: int) -> dict[str, Any]:
    """verl's settings of one phase, where they differ from its own. folder: where the phase's files lie."""
    phase, reward = config.context_phases[number], "reward.custom_reward_function"
    return {
        "algorithm.adv_estimator": "grpo",
        "algorithm.use_kl_in_reward": False,
        "data.train_files": str(folder / "train.parquet"),
        "data.val_files": str(folder / "val.parquet"),
        "data.train_batch_size": config.prompts_per_step,
        "data.max_prompt_length": config.max_prompt_length,
        "data.max_response_length": phase.max_response_length,
        "data.shuffle": False,
        "data.seed": config.seed,
        "data.dataloader_num_workers": 1,
        "actor_rollout_ref.model.path": str(model),
        "actor_rollout_ref.model.use_remove_padding": True,
        "actor_rollout_ref.model.enable_gradient_checkpointing": config.recompute == "full",
        **{f"actor_rollout_ref.actor.{name}": value for name, value in _actor(config).items()},
        "actor_rollout_ref.ref.fsdp_config.param_offload": True,  # DeepScaleR
        **{f"actor_rollout_ref.rollout.{name}": value for name, value in _rollout(config, phase).items()},
        "reward.num_workers": config.verify_workers,
        f"{reward}.path": str(REWARD),
        f"{reward}.name": "compute_score",
        f"+{reward}.reward_kwargs.rule": config.verifier_rule,
        f"+{reward}.reward_kwargs.right": config.reward_right,
        f"+{reward}.reward_kwargs.wrong": config.reward_wrong,
        "trainer.logger": ["console"],
        "trainer.project_name": "moxin",
        "trainer.experiment_name": "grpo",
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": gpus,
        "trainer.total_epochs": 1,
        "trainer.total_training_steps": phase.steps,
        "trainer.save_freq": config.checkpoint_every,
        "trainer.test_freq": -1,
        "trainer.val_before_train": False,  # the stage measures parent and child itself
        "trainer.resume_mode": "auto",
        "trainer.default_local_dir": str(folder / "checkpoints"),
        "+ray_kwargs.ray_init.include_dashboard": False,
    }


def _actor(config: Any) -> dict[str, Any]:
    """Optimizer and loss of the model that learns."""
    return {
        "strategy": "fsdp2",
        "optim.lr": config.learning_rate,
        "optim.weight_decay": config.weight_decay,
        "optim.betas": [config.beta1, config.beta2],
        "optim.clip_grad": config.grad_clip,
        "optim.lr_scheduler_type": "constant",
        "ppo_mini_batch_size": config.prompts_per_step // config.num_mini_batches,  # in prompts
        "ppo_epochs": 1,
        "use_dynamic_bsz": True,
        "ppo_max_token_len_per_gpu": config.max_tokens_per_gpu,
        "clip_ratio": config.clip_ratio,
        "clip_ratio_low": config.clip_ratio,
        "clip_ratio_high": config.clip_ratio,
        "clip_ratio_c": 1e6,  # newer verl clips a second time, at 3.0, which DeepScaleR's fork did not
        "use_kl_loss": config.kl_coef > 0,
        "kl_loss_coef": config.kl_coef,
        "kl_loss_type": "low_var_kl",
        "entropy_coeff": config.entropy_coef,
        # else float32 copies of max_tokens_per_gpu x vocabulary, three of them
        "entropy_from_logits_with_chunking": True,
        "entropy_checkpointing": True,
        "loss_agg_mode": "token-mean",
        "data_loader_seed": config.seed,
    }


def _rollout(config: Any, phase: Any) -> dict[str, Any]:
    """How responses are written."""
    return {
        "name": "vllm",
        "n": phase.num_generations,
        "temperature": config.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "seed": config.seed,
        "tensor_model_parallel_size": 1,  # DeepScaleR
        # DeepScaleR's 0.85 was for 1.5 billion parameters
        "gpu_memory_utilization": config.rollout_gpu_memory_utilization,
        "free_cache_engine": True,  # vLLM gives its memory back while the model learns
    }


def words(values: Mapping[str, Any]) -> list[str]:
    """Overrides as Hydra's command line has them. Strings are quoted: a path may hold what its grammar gives a
    meaning.
    """
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]


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
    """verl as a program of phases."""

    name, version = "verl", VERSION

    def command(self, phase: PhaseRun, rows: Rows) -> list[str]:
        """Parquet, and Hydra overrides."""
        every = list(rows)
        write_parquet(phase.folder / "train.parquet", every)
        write_parquet(phase.folder / "val.parquet", every[:1])  # verl wants one; it is never measured on
        settings = overrides(phase.ctx.config, phase.number, phase.folder, phase.start, phase.ctx.nproc_per_node)
        return [phase.python, "-m", "verl.trainer.main_ppo", *words(settings)]

    def read(self, line: str) -> tuple[int, dict[str, float]] | None:
        """verl's console log: `step:<n> - name:value - ...`."""
        if not (match := STEP.search(line)):
            return None
        values = {name: process.number(value) for name, value in VALUE.findall(match[2])}
        known = ((mine, values.get(theirs)) for theirs, mine in METRICS.items())
        return int(match[1]), {mine: value for mine, value in known if value is not None}

    def collect(self, phase: PhaseRun) -> Path:
        """Merge the last checkpoint's shards."""
        local, merged = phase.checkpoints / f"global_step_{phase.steps}" / "actor", phase.folder / "merged"
        command = [
            phase.python,
            "-m",
            "verl.model_merger",
            "merge",
            "--backend",
            "fsdp",
            "--local_dir",
            str(local),
            "--target_dir",
            str(merged),
        ]
        process.run(phase.ctx, self.name, command, env=phase.env, on_line=lambda line: None)
        return merged


def reinforce(
    ctx: Context[Any], model: torch.nn.Module, schedule: Callable[[int], Rows], checkpoint: tuple[int, Any] | None
) -> None:
    """Train `model` (the parent's weights) in place. schedule: the prompts of a phase, in order; checkpoint: the newest
    checkpoint.
    """
    context_phases.reinforce(
        ctx, model, schedule, checkpoint, Verl(), RAY_USAGE_STATS_ENABLED="0", RAY_COLOR_PREFIX="0"
    )
