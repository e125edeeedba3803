"""Run `grpo`: train through the phases of growing response length, keep the child, measure it and its parent, write
its card.

A checkpoint is the trainer's, with `position.json` (which phase) and, after the first, `start/`: the weights that the
phase began from, which its KL term compares with. At the end of a phase a checkpoint holds nothing but the next
one's start.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig as TrlConfig

from stages.core.context import Context
from stages.core.errors import Preempted
from stages.grpo.evaluation import Answered, Heldout, Questions, compare, read_questions, samples
from stages.grpo.rollout import RolloutTrainer, verified_reward
from stages.grpo.spec import GrpoConfig
from stages.lib.engines import areal, verl
from stages.lib.finetuning import model_loading, trained_model
from stages.lib.finetuning.heldout_evaluation import compared, measure
from stages.lib.finetuning.model_card import tuning_card, write_samples
from stages.lib.finetuning.trl_trainer import ContextCallback, common_arguments, keep_guard, restore_guard, train
from stages.lib.formats.paired_eval import as_stats
from stages.lib.modeling.config_file import read_shape
from stages.lib.modeling.hf_checkpoint import save_child
from stages.lib.training.spikes import SpikeGuard
from stages.lib.verifier import Verifier

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
    device = model_loading.prepare(ctx)
    template = model_loading.parent_template(ctx)
    parent = Path(ctx.input("parent").path)
    tokenizer = model_loading.load_tokenizer(parent, template)
    questions = read_questions(ctx, tokenizer, "problems")
    heldout = Heldout(ctx, tokenizer, read_questions(ctx, tokenizer, "heldout", config.eval_problems))
    responses = sum(s.steps * config.prompts_per_step * s.num_generations for s in config.context_phases)
    ctx.log(
        f"{len(questions.prompts):,} problems, {responses:,} responses to learn from; {len(heldout.questions.prompts)}"
        " problems held out"
    )
    checkpoint = ctx.checkpoints.latest()
    if (kept := trained_model.restore(ctx, checkpoint)) is None:
        model, statistics = reinforce(ctx, tokenizer, questions, device, template, checkpoint)
        kept = trained_model.keep(ctx, model, template, _steps(config, len(config.context_phases)), **statistics)
        del model
    measured = measure(ctx, "grpo", Path(ctx.output("model")), device, [heldout.part()])
    before, after = (
        Answered(**values["problems"]) if "problems" in values else None for values in (measured.before, measured.after)
    )
    effects = compared(ctx, measured, lambda: compare(ctx, before, after) if before and after else [])
    stats: dict[str, Any] = {
        "problems": len(questions.prompts),
        "removed": dict(sorted(questions.removed.items())),
        "steps": sum(s.steps for s in config.context_phases),
        "responses": responses,
        "outcomes": kept["outcomes"],
        **trained_model.trouble(kept),
        **measured.stats(),
    }
    for name, one in (("before", before), ("after", after)):
        stats |= {} if one is None else {f"{name}_truncated": one.truncated, f"{name}_length": one.length}
    if before:
        warn_of_cuts(ctx, before)
    folder = trained_model.describe(
        ctx, template, tuning_card(ctx, "grpo", stats, effects, ("problems",)), kept["parameters"]
    )
    ctx.stat(
        **stats,
        **as_stats(effects),
        samples=write_samples(folder, samples(heldout, before, after) if before and after else []),
    )


def warn_of_cuts(ctx: Context[GrpoConfig], parent: Answered) -> None:
    """A phase that cuts most of what the parent writes rewards nothing: its steps are noise, and undo what was
    learned.
    """
    for number, here in enumerate(ctx.config.context_phases):
        cut = sum(length > here.max_response_length for length in parent.lengths) / len(parent.lengths)
        if cut > 0.5:
            message = (
                f"context_phases.{number}.max_response_length = {here.max_response_length}: {cut:.0%} of the parent's"
                " answers are longer, are cut and earn nothing"
            )
            ctx.log(f"{message}; raise it", "warning")


def reinforce(
    ctx: Context[GrpoConfig],
    tokenizer: Any,
    questions: Questions,
    device: torch.device,
    template: str,
    checkpoint: tuple[int, Any] | None,
) -> tuple[Any, dict[str, Any]]:
    """Train through the phases that are left; checkpoint: the newest one. Returns the model and statistics: how the
    verifier's checks here ended, and which steps were left out.
    """
    config, parent = ctx.config, Path(ctx.input("parent").path)
    if config.engine != "trl":
        trained = model_loading.load_model(parent, model_loading.parent_device(ctx, device))
        ENGINES[config.engine].reinforce(ctx, trained, lambda number: schedule(questions, config, number), checkpoint)
        return trained, {"outcomes": {}}  # its reward workers check by themselves
    with Verifier(workers=config.verify_workers, rule=config.verifier_rule) as verifier:
        phases = TrlPhases(ctx, tokenizer, questions, verifier, SpikeGuard(config.spikes))
        model = phases.train(device, template, checkpoint[1] if checkpoint else None)
        return model, {"outcomes": dict(sorted(verifier.counts.items())), **phases.guard.statistics()}


@dataclass(frozen=True)
class TrlPhases:
    """Context phases trained with TRL, in this process."""

    ctx: Context[GrpoConfig]
    tokenizer: Any
    questions: Questions
    verifier: Verifier
    guard: SpikeGuard
    """Of the steps of all phases."""

    def train(self, device: torch.device, template: str, folder: Path | None) -> Any:
        """Train through the phases that are left; return the model. folder: of the newest checkpoint."""
        ctx, config, parent = self.ctx, self.ctx.config, Path(self.ctx.input("parent").path)
        first = json.loads((folder / POSITION).read_text())["phase"] if folder else 0
        restore_guard(self.guard, folder)
        start = folder / START if folder and first else parent
        resume = folder if folder and (folder / "trainer_state.json").is_file() else None
        model: Any = None
        for number in range(first, len(config.context_phases)):
            model = model_loading.load_model(start, device, dropout=config.attention_dropout)
            self.train_phase(model, number, start, resume)
            resume = None
            if number + 1 < len(config.context_phases):
                start = Path(ctx.scratch) / f"next-{number + 1}" / START
                start.mkdir(parents=True)
                save_child(model.state_dict(), parent, start, "", template)
                keep_guard(self.guard, start.parent)
                _hand_over(ctx, start.parent, number + 1)
        return model

    def train_phase(self, model: Any, number: int, start: Path, resume: Path | None) -> None:
        """Train one phase in place. start: the model folder that it began from; resume: the trainer's checkpoint."""
        ctx, config = self.ctx, self.ctx.config
        trainer = RolloutTrainer(
            model=model,
            args=TrlConfig(**trl_arguments(ctx, number, next(model.parameters()).device)),
            train_dataset=schedule(self.questions, config, number),
            processing_class=self.tokenizer,
            reward_funcs=[verified_reward(self.verifier, config)],
            advantage=config.advantage,
            rows=config.rollout_rows(read_shape(start)[0], number),
        )

        def mark(folder: Path) -> None:
            (folder / POSITION).write_text(json.dumps({"phase": number}))
            if number:  # the first phase began from the parent
                (folder / START).mkdir()
                for path in start.iterdir():
                    (folder / START / path.name).write_bytes(path.read_bytes())

        total, offset = _steps(config, len(config.context_phases)), _steps(config, number)
        bridge = ContextCallback(
            ctx,
            METRICS,
            offset=offset,
            total=total,
            period=config.num_mini_batches,
            on_save=mark,
            guard=self.guard,
        )
        train(ctx, trainer, bridge, resume)


def _hand_over(ctx: Context[GrpoConfig], folder: Path, number: int) -> None:
    """Publish the start of the next phase as a checkpoint; stop here when asked to."""
    (folder / POSITION).write_text(json.dumps({"phase": number}))
    step = _steps(ctx.config, number)
    ctx.checkpoints.save(step, folder)
    if ctx.stopping:
        raise Preempted(
            f"stopped at step {step} of {_steps(ctx.config, len(ctx.config.context_phases))}; the next run goes on from"
            " there"
        )


def _steps(config: GrpoConfig, phases: int) -> int:
    """Optimizer steps of the first phases."""
    return sum(s.steps for s in config.context_phases[:phases]) * config.num_mini_batches


def trl_arguments(ctx: Context[GrpoConfig], number: int, device: torch.device) -> dict[str, Any]:
    """TRL's settings of one phase, mapped from DeepScaleR's of verl."""
    config, here = ctx.config, ctx.config.context_phases[number]
    responses = config.prompts_per_step * here.num_generations
    return {
        **common_arguments(ctx, device),
        "max_steps": here.steps * config.num_mini_batches,
        "gradient_accumulation_steps": responses // config.num_mini_batches // config.micro_batch_size,
        "steps_per_generation": responses // config.micro_batch_size,
        "num_generations": here.num_generations,
        "max_completion_length": here.max_response_length,
        "temperature": config.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "beta": config.kl_coef,
        "use_bias_correction_kl": False,  # verl's low_var_kl
        "epsilon": config.clip_ratio,
        "loss_type": "dapo",  # mean over the tokens of the global batch: verl's token-mean
        "scale_rewards": "group",
        "entropy_coef": config.entropy_coef,
        "num_iterations": 1,
        "mask_truncated_completions": False,
        "shuffle_dataset": False,  # `schedule` orders the problems
    }


def schedule(questions: Questions, config: GrpoConfig, number: int) -> Dataset:
    """The prompts of a phase, in order: seeded permutations of the problems, one after the other, running on through
    the phases.
    """
    count = len(questions.prompts)
    begin = sum(s.steps for s in config.context_phases[:number]) * config.prompts_per_step
    positions = range(begin, begin + config.context_phases[number].steps * config.prompts_per_step)
    epochs = {e: np.random.default_rng([config.seed, e]).permutation(count) for e in {i // count for i in positions}}
    order = [int(epochs[i // count][i % count]) for i in positions]
    return Dataset.from_list([{"prompt": questions.prompts[i], "answer": questions.answers[i]} for i in order])
