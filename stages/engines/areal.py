"""Engine `areal` 1.0.4 for PPO without a critic: one run of AReaL's PPOTrainer for each stretch (`programs/run_areal.py`).

Settings are derived from the stage's configuration and given as a file that AReaL's own classes parse. Half of the devices write
responses (SGLang), half train (FSDP2), as in AReaL's examples; nothing is learned from that older weights wrote
(`max_head_offpolicyness` 0), as in v0.1, which the paper's +5 and -5 are from. The reward is this repository's verifier. Its KL term is
taken off the reward. Stretches, checkpoints and resume: `stretches.py`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from stages.core.contracts import Context
from stages.engines import process, stretches
from stages.engines.exchange import write_json, write_rows
from stages.engines.stretches import Rows, Stretch

VERSION = "1.0.4"
PROGRAMS = Path(__file__).parent / "programs"
NAMES = {"experiment_name": "moxin", "trial_name": "grpo"}
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


def settings(config: Any, number: int, folder: Path, model: Path) -> dict[str, Any]:
    """AReaL's settings of one stretch, where they differ from its own. folder: where the stretch's files lie."""
    here, half = config.stages[number], config.devices // 2
    root = {**NAMES, "fileroot": str(folder / "areal")}
    worker = {"cpu": 4, "gpu": 1, "cmd": f"python {shlex.quote(str(PROGRAMS / 'areal_worker.py'))}"}
    trained = {
        **NAMES,
        "path": str(model),
        "backend": f"fsdp:d{half}",
        "dtype": "bfloat16",
        "disable_dropout": True,
        "gradient_checkpointing": config.recompute == "full",
        "mb_spec": {"max_tokens_per_mb": config.tokens_per_device},
        "scheduling_spec": [worker],
    }
    return {
        **NAMES,
        "seed": config.seed,
        "total_train_epochs": 1,
        "tokenizer_path": str(model),
        "cluster": {
            "n_nodes": 1,
            "n_gpus_per_node": config.devices,
            "fileroot": root["fileroot"],
            "name_resolve": {"type": "nfs", "nfs_record_root": str(folder / "areal" / "names")},
        },
        "scheduler": {"type": "local"},
        "train_dataset": {"path": str(folder / "train.jsonl"), "type": "rl", "batch_size": config.prompts, "shuffle": False, "drop_last": True},
        "gconfig": {
            "n_samples": here.group,
            "max_new_tokens": here.max_response,
            "max_tokens": config.max_prompt + here.max_response,
            "temperature": config.temperature,
            "top_p": 1.0,
        },
        "rollout": {
            **root,
            "backend": f"sglang:d{half}",
            "tokenizer_path": str(model),
            "consumer_batch_size": config.prompts,
            "max_head_offpolicyness": 0,
            "scheduling_spec": [worker],
        },
        "actor": {**trained, **_learning(config, here)},
        "ref": {**trained, "scheduling_strategy": {"type": "colocation", "target": "actor", "fork": False}} if config.kl else None,
        "saver": root,
        "evaluator": root,
        "recover": {**root, "mode": "on", "freq_steps": config.checkpoint_every, "freq_epochs": 1},
        "stats_logger": {**root, "wandb": {"mode": "disabled"}},
        "sglang": {
            "model_path": str(model),
            "random_seed": config.seed,
            "skip_tokenizer_init": True,
            "dtype": "bfloat16",
            "context_length": config.max_prompt + here.max_response,
            "mem_fraction_static": 0.8,  # AReaL's examples/math/gsm8k_grpo.yaml
        },
    }


def _learning(config: Any, here: Any) -> dict[str, Any]:
    """The actor's loss and optimizer: PPO without a critic on the reward as it is, normalised over the batch's tokens."""
    return {
        "temperature": config.temperature,
        "ppo_n_minibatches": config.minibatches,
        "eps_clip": config.clip,
        "kl_ctl": config.kl,
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
        "max_new_tokens": here.max_response,
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


def _program(stretch: Stretch) -> list[str]:
    return [stretch.python, str(PROGRAMS / "run_areal.py"), str(stretch.folder)]


class Areal:
    """AReaL as a program of stretches."""

    name, version = "areal", VERSION

    def __init__(self, kl: float) -> None:
        self._kl = kl

    def command(self, stretch: Stretch, rows: Rows) -> list[str]:
        """Rows with what the reward needs, and the settings; JSON is YAML, too."""
        config = stretch.ctx.config
        reward = {"rule": config.rule, "right": config.reward_right, "wrong": config.reward_wrong}
        write_rows(stretch.folder / "train.jsonl", ({"messages": row["prompt"], "answer": row["answer"], **reward} for row in rows))
        write_json(stretch.folder / "config.yaml", settings(config, stretch.number, stretch.folder, stretch.start))
        return _program(stretch)

    def read(self, line: str) -> tuple[int, dict[str, float]] | None:
        """A line of `run_areal.py`'s."""
        _, mark, rest = line.partition(MARK)
        if not mark:
            return None
        found = json.loads(rest)
        return found["step"], metrics(found["stats"], self._kl)

    def collect(self, stretch: Stretch) -> Path:
        """What the run left; after a resume at the stretch's end it is run once more, which only writes."""
        weights = stretch.folder / "model"
        if not weights.is_dir():
            process.run(stretch.ctx, self.name, _program(stretch), env=stretch.env, on_line=lambda line: None)
        return weights


def reinforce(ctx: Context[Any], model: torch.nn.Module, schedule: Callable[[int], Rows]) -> None:
    """Train `model` (the parent's weights) in place. schedule: the prompts of a stretch, in order."""
    stretches.reinforce(ctx, model, schedule, Areal(ctx.config.kl))
