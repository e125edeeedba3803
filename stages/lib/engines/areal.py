"""Engine `areal` 1.0.4 for PPO without a critic: one run of AReaL's PPOTrainer for each phase
(`programs/run_areal.py`).

Settings are derived from the stage's configuration and given as a file that AReaL's own classes parse. Half of the GPUs
write responses (SGLang), half train (FSDP2), as in AReaL's examples; nothing is learned from that older weights wrote
(`max_head_offpolicyness` 0), as in v0.1, which the paper's +5 and -5 are from. The reward is this repository's
verifier. Its KL term is taken off the reward. Context phases, checkpoints and resume: `context_phases.py`.
"""

from __future__ import annotations

import operator
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from stages.core.context import Context
from stages.core.json_text import parsed_json
from stages.lib.engines import context_phases, process
from stages.lib.engines.checkpoint_conversion import write_json, write_rows
from stages.lib.engines.context_phases import PhaseRun, Rows

VERSION = "1.0.4"
PROGRAMS = Path(__file__).parent / "programs"
NAMES = {"experiment_name": "moxin", "trial_name": "grpo"}
WORKER = {"cpu": 4, "gpu": 1, "cmd": f"python {shlex.quote(str(PROGRAMS / 'areal_worker.py'))}"}
"""How AReaL starts each of its workers."""
SECONDS_A_TOKEN = 0.4
"""Of a response, at the slowest: a full GPU of the paper's model writes some 2,700 tokens a second
(infra/gpu_prices.toml), 40 for each of 64 responses at one time; of this a tenth is still in time. AReaL's limit holds
for a whole group, its waiting in SGLang included.
"""
MARK = "areal-step "
"""What `run_areal.py` begins a step's line with; the rest is JSON."""
METRICS = {
    "ppo_actor/update/actor_loss/avg": "loss",
    "ppo_actor/update/lr": "learning_rate",
    "ppo_actor/update/grad_norm": "grad_norm",
    "ppo_actor/update/entropy/avg": "entropy",
    "ppo_actor/update/clip_ratio/avg": "clip_fraction",
    "ppo_actor/task_reward/avg": "reward",
}
"""AReaL's names and ours. Accuracy, response length and KL follow from others (`metrics`)."""


def settings(config: Any, number: int, folder: Path, model: Path, gpus: int) -> dict[str, Any]:
    """AReaL's settings of one phase, where they differ from its own. folder: where the phase's files lie."""
    phase, half = config.context_phases[number], gpus // 2
    root = {**NAMES, "fileroot": str(folder / "areal")}
    trained = {
        **NAMES,
        "path": str(model),
        "backend": f"fsdp:d{half}",
        "dtype": "bfloat16",
        "disable_dropout": True,
        "gradient_checkpointing": config.recompute == "full",
        "mb_spec": {"max_tokens_per_mb": config.max_tokens_per_gpu},
        "scheduling_spec": [WORKER],
    }
    colocated = {"scheduling_strategy": {"type": "colocation", "target": "actor", "fork": False}}
    return {
        **NAMES,
        "seed": config.seed,
        "total_train_epochs": 1,
        "tokenizer_path": str(model),
        "cluster": {
            "n_nodes": 1,
            "n_gpus_per_node": gpus,
            "fileroot": root["fileroot"],
            "name_resolve": {"type": "nfs", "nfs_record_root": str(folder / "areal" / "names")},
        },
        "scheduler": {"type": "local"},
        "train_dataset": {
            "path": str(folder / "train.jsonl"),
            "type": "rl",
            "batch_size": config.prompts_per_step,
            "shuffle": False,
            "drop_last": True,
        },
        **_generation(config, phase, model, root, half),
        "actor": {**trained, **_learning(config, phase)},
        "ref": {**trained, **colocated} if config.kl_coef else None,
        "saver": root,
        "evaluator": root,
        "recover": {**root, "mode": "on", "freq_steps": config.checkpoint_every, "freq_epochs": 1},
        "stats_logger": {**root, "wandb": {"mode": "disabled"}},
    }


def _generation(config: Any, phase: Any, model: Path, root: Mapping[str, Any], gpus: int) -> dict[str, Any]:
    """How responses are written. gpus: those that SGLang has."""
    longest = config.max_prompt_length + phase.max_response_length
    return {
        "gconfig": {
            "n_samples": phase.num_generations,
            "max_new_tokens": phase.max_response_length,
            "max_tokens": longest,
            "temperature": config.temperature,
            "top_p": 1.0,
        },
        "rollout": {
            **root,
            "backend": f"sglang:d{gpus}",
            "tokenizer_path": str(model),
            "consumer_batch_size": config.prompts_per_step,
            # in prompts: a rollout is a whole group
            "max_concurrent_rollouts": max(1, config.concurrent_responses * gpus // phase.num_generations),
            # what AReaL makes it when a batch is asked for all at once
            "queue_size": config.prompts_per_step * 16,
            "request_timeout": max(3600.0, SECONDS_A_TOKEN * phase.max_response_length),
            "max_head_offpolicyness": 0,
            "scheduling_spec": [WORKER],
        },
        "sglang": {
            "model_path": str(model),
            "random_seed": config.seed,
            "skip_tokenizer_init": True,
            "dtype": "bfloat16",
            "context_length": longest + 1,  # SGLang refuses a request that would fill its context
            "mem_fraction_static": 0.8,  # AReaL's examples/math/gsm8k_grpo.yaml
        },
    }


def _learning(config: Any, phase: Any) -> dict[str, Any]:
    """The actor's loss and optimizer: PPO without a critic on the reward as it is, normalised over the batch's
    tokens.
    """
    return {
        "temperature": config.temperature,
        "ppo_n_minibatches": config.num_mini_batches,
        "eps_clip": config.clip_ratio,
        "kl_ctl": config.kl_coef,
        "kl_estimator": "k1",  # v0.1: the plain difference of log-probabilities
        "discount": 1.0,
        "gae_lambda": 1.0,
        "reward_norm": None,  # it would take the scale away, and compare within groups
        "reward_bias": 0.0,  # the verifier's reward is on the recipe's scale already
        "reward_scaling": 1.0,
        "reward_clip": max(abs(config.reward_right), abs(config.reward_wrong)),
        "adv_norm": {"mean_level": "batch", "std_level": "batch", "std_unbiased": False},
        "recompute_logprob": True,
        "use_decoupled_loss": False,
        "max_new_tokens": phase.max_response_length,
        "weight_update_mode": "disk",
        "optimizer": {
            "type": "adam",
            "lr": config.learning_rate,
            "beta1": config.beta1,
            "beta2": config.beta2,
            "eps": config.eps,
            "weight_decay": config.weight_decay,
            "gradient_clipping": config.grad_clip,
            "lr_scheduler_type": "constant",
            "warmup_steps_proportion": 0.0,
        },
    }


def metrics(stats: Mapping[str, float], kl: float) -> dict[str, float]:
    """A step's statistics by our names. kl: the KL term's weight, which AReaL's are multiplied with."""
    row = {mine: float(stats[theirs]) for theirs, mine in METRICS.items() if theirs in stats}
    lengths = [stats.get(f"ppo_actor/{name}/avg") for name in ("seq_len", "prompt_len")]
    if None not in lengths:
        row["response_length"] = lengths[0] - lengths[1]  # type: ignore[operator]
    right, every = stats.get("ppo_actor/correct_n_seqs"), stats.get("ppo_actor/n_seqs")
    if right is not None and every:
        row["accuracy"] = right / every  # a reward above 0: what the verifier accepts
    penalty = stats.get("ppo_actor/kl_rewards/avg")
    if kl and penalty is not None:
        row["kl"] = -penalty / kl
    return row


def _program(phase: PhaseRun) -> list[str]:
    return [phase.python, str(PROGRAMS / "run_areal.py"), str(phase.folder)]


class Areal:
    """AReaL as a program of phases."""

    name, version = "areal", VERSION

    def __init__(self, kl: float) -> None:
        self._kl = kl

    def command(self, phase: PhaseRun, rows: Rows) -> list[str]:
        """Rows with what the reward needs, and the settings; JSON is YAML, too."""
        config = phase.ctx.config
        reward = {"rule": config.verifier_rule, "right": config.reward_right, "wrong": config.reward_wrong}
        write_rows(
            phase.folder / "train.jsonl",
            ({"messages": row["prompt"], "answer": row["answer"], **reward} for row in rows),
        )
        write_json(
            phase.folder / "config.yaml",
            settings(config, phase.number, phase.folder, phase.start, phase.ctx.nproc_per_node),
        )
        return _program(phase)

    def read(self, line: str) -> tuple[int, dict[str, float]] | None:
        """A line of `run_areal.py`'s; one that is not whole is none: another process has written into it."""
        _, mark, rest = line.partition(MARK)
        if not mark:
            return None
        try:
            event = parsed_json(rest)
            return operator.index(event["step"]), metrics(event["stats"], self._kl)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None

    def collect(self, phase: PhaseRun) -> Path:
        """What the run left; after a resume at the phase's end it is run once more, which only writes."""
        weights = phase.folder / "model"
        if not weights.is_dir():
            process.run(phase.ctx, self.name, _program(phase), env=phase.env, on_line=lambda line: None)
        return weights


def reinforce(
    ctx: Context[Any], model: torch.nn.Module, schedule: Callable[[int], Rows], checkpoint: tuple[int, Any] | None
) -> None:
    """Train `model` (the parent's weights) in place. schedule: the prompts of a phase, in order; checkpoint: the newest
    checkpoint.
    """
    context_phases.reinforce(ctx, model, schedule, checkpoint, Areal(ctx.config.kl_coef))
