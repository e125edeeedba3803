"""Run `grpo`: measure the parent, train through the stretches of growing response length, measure the child, write its folder.

A checkpoint is the trainer's, with `position.json` (which stretch) and, after the first, `start/`: the weights that the stretch began
from, which its KL term compares with. At the end of a stretch a checkpoint holds nothing but the next one's start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig as TrlConfig

from stages.core.contracts import Context, Preempted
from stages.engines import areal, verl
from stages.finetuning import models
from stages.finetuning.card import tuning_card, write_samples
from stages.finetuning.trainer import Bridge, common_arguments, train
from stages.formats.effects import as_stats
from stages.grpo.evaluation import Heldout, Measured, Questions, compare, read_questions, samples
from stages.grpo.rollout import RolloutTrainer, verified_reward
from stages.grpo.spec import GrpoConfig
from stages.modeling.folder import save_child
from stages.verifier import Verifier

ENGINES: dict[str, Any] = {"verl": verl, "areal": areal}
POSITION, START = "position.json", "start"
METRICS = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "reward": "reward",
    "accuracy": "accuracy",
    "format": "format",
    "completions/mean_length": "response_length",
    "completions/clipped_ratio": "truncated",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_fraction",
    "frac_reward_zero_std": "equal_groups",
}
"""TRL's names and ours. Rewards and lengths come once a batch of responses, the others with every optimizer step."""


def run(ctx: Context[GrpoConfig]) -> None:
    """Reinforce."""
    config = ctx.config
    device = models.prepare(ctx)
    template = models.parent_template(ctx)
    parent = Path(ctx.input("parent").path)
    tokenizer = models.load_tokenizer(parent, template)
    questions = read_questions(ctx, tokenizer, "problems")
    heldout = Heldout(ctx, tokenizer, read_questions(ctx, tokenizer, "heldout", config.eval_problems))
    responses = sum(s.steps * config.prompts * s.group for s in config.stages)
    ctx.log(f"{len(questions.prompts):,} problems, {responses:,} responses to learn from; {len(heldout.questions.prompts)} problems held out")
    with Verifier(workers=config.verify_workers, rule=config.rule) as verifier:
        before = heldout.measure(models.load_model(parent, device), verifier)
        warn_of_cuts(ctx, before)
        model = reinforce(ctx, tokenizer, questions, verifier, device, template)
        outcomes = dict(sorted(verifier.counts.items()))
        after = heldout.measure(model, verifier)
    effects = compare(ctx, before, after)
    stats = {
        "problems": len(questions.prompts),
        "removed": dict(sorted(questions.removed.items())),
        "steps": sum(s.steps for s in config.stages),
        "responses": responses,
        "outcomes": outcomes,
        "before_truncated": before.truncated,
        "after_truncated": after.truncated,
        "before_length": before.length,
        "after_length": after.length,
    }
    folder = models.describe_child(ctx, model, template, tuning_card(ctx, "grpo", stats, effects, ("problems",)))
    ctx.stat(**stats, **as_stats(effects), samples=write_samples(folder, samples(heldout, before, after)))


def warn_of_cuts(ctx: Context[GrpoConfig], parent: Measured) -> None:
    """A stretch that cuts most of what the parent writes rewards nothing: its steps are noise, and undo what was learned."""
    for number, here in enumerate(ctx.config.stages):
        cut = sum(length > here.max_response for length in parent.lengths) / len(parent.lengths)
        if cut > 0.5:
            message = f"stages.{number}.max_response = {here.max_response}: {cut:.0%} of the parent's answers are longer, are cut and earn nothing"
            ctx.log(f"{message}; raise it", "warning")


def reinforce(ctx: Context[GrpoConfig], tokenizer: Any, questions: Questions, verifier: Verifier, device: torch.device, template: str) -> Any:
    """Train through the stretches that are left. Returns the model."""
    config, parent = ctx.config, Path(ctx.input("parent").path)
    if config.engine != "trl":
        trained = models.load_model(parent, device)
        ENGINES[config.engine].reinforce(ctx, trained, lambda number: schedule(questions, config, number))
        return trained
    found = ctx.checkpoints.latest()
    folder = found[1] if found else None
    first = json.loads((folder / POSITION).read_text())["stretch"] if folder else 0
    start = folder / START if folder and first else parent
    resume = folder if folder and (folder / "trainer_state.json").is_file() else None
    model: Any = None
    for number in range(first, len(config.stages)):
        model = models.load_model(start, device)
        stretch(ctx, model, tokenizer, questions, verifier, number, start if number else None, resume)
        resume = None
        if number + 1 < len(config.stages):
            start = Path(ctx.scratch) / f"next-{number + 1}" / START
            start.mkdir(parents=True)
            save_child(model.state_dict(), parent, start, "", template)
            _hand_over(ctx, start.parent, number + 1)
    return model


def _hand_over(ctx: Context[GrpoConfig], folder: Path, number: int) -> None:
    """Publish the start of the next stretch as a checkpoint; stop here when asked to."""
    (folder / POSITION).write_text(json.dumps({"stretch": number}))
    step = _steps(ctx.config, number)
    ctx.checkpoints.save(step, folder)
    if ctx.stopping:
        raise Preempted(f"stopped at step {step} of {_steps(ctx.config, len(ctx.config.stages))}; the next run goes on from there")


def _steps(config: GrpoConfig, stretches: int) -> int:
    """Optimizer steps of the first stretches."""
    return sum(s.steps for s in config.stages[:stretches]) * config.minibatches


def stretch(
    ctx: Context[GrpoConfig], model: Any, tokenizer: Any, questions: Questions, verifier: Verifier, number: int, start: Path | None, resume: Path | None
) -> None:
    """Train one stretch in place. start: what it began from, kept with its checkpoints (None: the parent)."""
    config = ctx.config
    trainer = RolloutTrainer(
        model=model,
        args=TrlConfig(**trl_arguments(ctx, number, next(model.parameters()).device)),
        train_dataset=schedule(questions, config, number),
        processing_class=tokenizer,
        reward_funcs=[verified_reward(verifier, config)],
        advantage=config.advantage,
    )

    def mark(folder: Path) -> None:
        (folder / POSITION).write_text(json.dumps({"stretch": number}))
        if start is not None:
            (folder / START).mkdir()
            for path in start.iterdir():
                (folder / START / path.name).write_bytes(path.read_bytes())

    total, offset = _steps(config, len(config.stages)), _steps(config, number)
    train(ctx, trainer, Bridge(ctx, METRICS, offset=offset, total=total, period=config.minibatches, on_save=mark), resume)


def trl_arguments(ctx: Context[GrpoConfig], number: int, device: torch.device) -> dict[str, Any]:
    """TRL's settings of one stretch (facts/post_training.md 2: the map from DeepScaleR's)."""
    config, here = ctx.config, ctx.config.stages[number]
    responses = config.prompts * here.group
    return {
        **common_arguments(ctx, device),
        "max_steps": here.steps * config.minibatches,
        "gradient_accumulation_steps": responses // config.minibatches // config.micro_batch,
        "steps_per_generation": responses // config.micro_batch,
        "num_generations": here.group,
        "max_completion_length": here.max_response,
        "temperature": config.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "beta": config.kl,
        "use_bias_correction_kl": False,  # verl's low_var_kl
        "epsilon": config.clip,
        "loss_type": "dapo",  # mean over the tokens of the global batch: verl's token-mean
        "scale_rewards": "group",
        "entropy_coef": config.entropy,
        "num_iterations": 1,
        "mask_truncated_completions": False,
        "shuffle_dataset": False,  # `schedule` orders the problems
    }


def schedule(questions: Questions, config: GrpoConfig, number: int) -> Dataset:
    """The prompts of a stretch, in order: seeded permutations of the problems, one after the other, running on through the stretches."""
    count = len(questions.prompts)
    begin = sum(s.steps for s in config.stages[:number]) * config.prompts
    wanted = range(begin, begin + config.stages[number].steps * config.prompts)
    epochs = {e: np.random.default_rng([config.seed, e]).permutation(count) for e in {i // count for i in wanted}}
    order = [int(epochs[i // count][i % count]) for i in wanted]
    return Dataset.from_list([{"prompt": questions.prompts[i], "answer": questions.answers[i]} for i in order])
