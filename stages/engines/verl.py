"""Engine `verl` 0.9.1 for GRPO: one run of `verl.trainer.main_ppo` for each stretch, each from the merged weights of the one before.

Hydra overrides are derived from the stage's configuration; the reward is this repository's verifier (`programs/verl_reward.py`). The
problems' order is the stage's own, written out as Parquet, one row a prompt, and read once without shuffling.

A checkpoint of the stage holds verl's `global_step_<n>`, the number of the stretch, and after the first its start.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stages.core.contracts import Context
from stages.engines import process
from stages.engines.exchange import link_tree, load_weights, prepare_parent, read_safetensors
from stages.finetuning.trainer import check

VERSION = "0.9.1"
ROOT = Path(__file__).resolve().parents[2]
REWARD = Path(__file__).parent / "programs" / "verl_reward.py"
LATEST = "latest_checkpointed_iteration.txt"
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
Rows = Iterable[Mapping[str, Any]]


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
        "actor_rollout_ref.model.enable_gradient_checkpointing": config.recompute,
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


def reinforce(ctx: Context[Any], model: torch.nn.Module, schedule: Callable[[int], Rows]) -> None:
    """Train `model` (the parent's weights) in place. schedule: the prompts of a stretch, in order."""
    config, root = ctx.config, Path(ctx.scratch) / "verl"
    python = process.interpreter(ctx, "verl")
    device = next(model.parameters()).device
    model.to("cpu")  # the engine needs the GPU's memory
    torch.cuda.empty_cache()
    root.mkdir()
    prepare_parent(Path(ctx.input("parent").path), root / "parent")
    first, start = restore(ctx, root)
    for number in range(first, len(config.stages)):
        folder = root / f"stretch-{number}"
        folder.mkdir(exist_ok=True)
        rows = list(schedule(number))
        write_parquet(folder / "train.parquet", rows)
        write_parquet(folder / "val.parquet", rows[:1])  # verl wants one; it is never measured on
        env = process.environment(root, PYTHONPATH=str(ROOT), RAY_USAGE_STATS_ENABLED="0", RAY_COLOR_PREFIX="0")
        keeper = Checkpoints(ctx, folder / "checkpoints", number, start if number else None)
        command = [python, "-m", "verl.trainer.main_ppo", *words(overrides(config, number, folder, start))]
        ctx.log(f"verl {VERSION}, stretch {number + 1} of {len(config.stages)}: {' '.join(command)}")
        if keeper.known < config.stages[number].steps:
            process.run(ctx, "verl", command, env=env, on_line=Follower(ctx, number), on_tick=keeper.publish)
        start = merge(ctx, python, folder, config.stages[number].steps, root / "parent", env)
    load_weights(model, read_safetensors(start), "verl")
    model.to(device)


def merge(ctx: Context[Any], python: str, folder: Path, step: int, parent: Path, env: Mapping[str, str]) -> Path:
    """The stretch's last checkpoint as a Hugging Face folder, with the parent's tokenizer and configuration."""
    merged, start = folder / "merged", folder / "start"
    local = folder / "checkpoints" / f"global_step_{step}" / "actor"
    command = [python, "-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", str(local), "--target_dir", str(merged)]
    process.run(ctx, "verl", command, env=env, on_line=lambda line: None)
    start.mkdir()
    for path in parent.iterdir():
        if not path.name.startswith("model"):
            shutil.copyfile(path, start / path.name)
    for path in [*merged.glob("*.safetensors"), *merged.glob("model.safetensors.index.json")]:
        path.rename(start / path.name)
    return start


class Follower:
    """Reads verl's console log: `step:<n> - name:value - ...`."""

    def __init__(self, ctx: Context[Any], number: int) -> None:
        self._ctx = ctx
        self._offset = sum(s.steps for s in ctx.config.stages[:number])
        self._total = sum(s.steps for s in ctx.config.stages)

    def __call__(self, line: str) -> None:
        if not (found := STEP.search(line)):
            return
        values = {name: float(value) for name, value in VALUE.findall(found[2])}
        row = {mine: values[theirs] for theirs, mine in METRICS.items() if theirs in values}
        step = self._offset + int(found[1])
        check(self._ctx, step, row)
        self._ctx.metric(step, **{name: value for name, value in row.items() if math.isfinite(value)})
        self._ctx.progress(step, self._total, "steps")


class Checkpoints:
    """Publishes verl's checkpoints when its tracker file says that they are whole."""

    def __init__(self, ctx: Context[Any], folder: Path, number: int, start: Path | None) -> None:
        self._ctx, self._folder, self._number, self._start = ctx, folder, number, start
        self.known = _tracked(folder)
        self._offset = sum(s.steps for s in ctx.config.stages[:number])

    def publish(self) -> None:
        """Publish the newest one, once; older ones, and those of the trainer's, are removed."""
        step = _tracked(self._folder)
        if step == self.known:
            return
        self.known = step
        last = self._number + 1 == len(self._ctx.config.stages)
        if last and step == self._ctx.config.stages[self._number].steps:
            return  # the end: the model is about to be written
        kept = self._folder.parent / f"kept_{step}"
        link_tree(self._folder / f"global_step_{step}", kept / f"global_step_{step}")
        if self._start is not None:
            link_tree(self._start, kept / "start")
        (kept / "position.json").write_text(json.dumps({"stretch": self._number, "step": step}))
        self._ctx.checkpoints.save(self._offset + step, kept)
        shutil.rmtree(kept)
        for old in self._folder.glob("global_step_*"):
            if int(old.name.rpartition("_")[2]) < step:  # a newer one may be on its way
                shutil.rmtree(old)


def _tracked(folder: Path) -> int:
    """Step of the newest whole checkpoint; 0: none."""
    text = (folder / LATEST).read_text() if (folder / LATEST).is_file() else ""
    return int(text) if text.strip().isdigit() else 0


def restore(ctx: Context[Any], root: Path) -> tuple[int, Path]:
    """Put the newest checkpoint of this key where verl finds it. Returns the stretch to go on with, and the model it began from."""
    if (found := ctx.checkpoints.latest()) is None:
        return 0, root / "parent"
    position = json.loads((Path(found[1]) / "position.json").read_text())
    folder = root / f"stretch-{position['stretch']}" / "checkpoints"
    name = f"global_step_{position['step']}"
    link_tree(Path(found[1]) / name, folder / name)
    (folder / LATEST).write_text(str(position["step"]))
    start = root / "parent"
    if (Path(found[1]) / "start").is_dir():
        start = root / "restored"
        link_tree(Path(found[1]) / "start", start)
    ctx.log(f"goes on after step {found[0]}, in stretch {position['stretch'] + 1}")
    return int(position["stretch"]), start
