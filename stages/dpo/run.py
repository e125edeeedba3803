"""Run `dpo`: encode pairs, cache the reference's log-probabilities, train, measure parent and child, write the folder."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig as TrlConfig
from trl.trainer.dpo_trainer import DPOTrainer

from stages.core.contracts import Context, InputError
from stages.dpo.pairs import SIDES, PairCollator, Pairs, encode_pairs
from stages.dpo.spec import DpoConfig
from stages.engines import openinstruct
from stages.finetuning import models
from stages.finetuning.card import tuning_card, write_samples
from stages.finetuning.encoding import encode_prompts, selected
from stages.finetuning.measures import label_log_probs
from stages.finetuning.sampling import sample, texts
from stages.finetuning.trainer import Bridge, common_arguments, train
from stages.formats.effects import Effect, as_stats, effect
from stages.formats.examples import Preference, read_preferences

METRICS = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "mean_token_accuracy": "token_accuracy",
}
"""TRL's names and ours. A reward is beta x (sum of the answer's log-ratios): TRL's, not divided by its tokens as the loss is."""


class PairTrainer(DPOTrainer):
    """TRL's trainer on rows that are encoded already and carry the reference's log-probabilities."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [*(f"{s}_{c}" for s in SIDES for c in ("ids", "mask")), "ref_chosen_logps", "ref_rejected_logps"]


def run(ctx: Context[DpoConfig]) -> None:
    """Tune on pairs."""
    config = ctx.config
    device = models.prepare(ctx)
    template = models.parent_template(ctx)
    parent = Path(ctx.input("parent").path)
    tokenizer = models.load_tokenizer(parent, template)
    pairs = _pairs(ctx, tokenizer, "preferences", config.max_rows)
    heldout = _pairs(ctx, tokenizer, "heldout", config.eval_rows)
    ctx.log(f"{len(pairs.rows):,} pairs, {pairs.tokens:,} tokens, {pairs.truncated} truncated; {len(heldout.rows)} held out")
    model = models.load_model(parent, device)
    reference = [label_log_probs(model, pairs.labelled(side), config.eval_batch)[0] for side in SIDES]
    shown = _shown(ctx)
    before, first = preferred(model, heldout, config.eval_batch), _answers(ctx, model, tokenizer, shown)
    tune(ctx, model, tokenizer, pairs, reference, device)
    after, second = preferred(model, heldout, config.eval_batch), _answers(ctx, model, tokenizer, shown)
    effects = compare(ctx, before, after)
    stats = {
        "rows": len(pairs.rows),
        "tokens": pairs.tokens,
        "truncation_rate": round(pairs.truncated / len(pairs.rows), 6),
        "removed": dict(sorted(pairs.removed.items())),
        "steps": -(-len(pairs.rows) // config.batch_size) * config.epochs,
    }
    folder = models.describe_child(ctx, model, template, tuning_card(ctx, "dpo", stats, effects, ("preferences",)))
    rows = [
        {"prompt": p["prompt"], "chosen": p["chosen"], "rejected": p["rejected"], "before": one, "after": two}
        for p, one, two in zip(shown, first, second, strict=True)
    ]
    ctx.stat(**stats, **as_stats(effects), samples=write_samples(folder, rows))


def _pairs(ctx: Context[DpoConfig], tokenizer: Any, port: str, max_rows: int | None) -> Pairs:
    """The pairs of an input. Raises InputError when none is left, saying why."""
    found = encode_pairs(tokenizer, read_preferences(ctx.input(port).path), ctx.config, max_rows)
    if not found.rows:
        why = ", ".join(f"{count} {reason}" for reason, count in found.removed.most_common()) or "it has none"
        raise InputError(f"{ctx.node}: no pair of its input {port} can be used: of {found.seen}, {why}")
    return found


def tune(ctx: Context[DpoConfig], model: Any, tokenizer: Any, pairs: Pairs, reference: list[list[float]], device: torch.device) -> None:
    """Train in place. reference: log-probabilities of the chosen and of the rejected answers under the parent."""
    config = ctx.config
    if config.engine == "open-instruct":
        kept = selected(read_preferences(ctx.input("preferences").path), pairs.kept)
        rows = ({side: [*p["prompt"], *p[side]] for side in SIDES} for p in kept)
        openinstruct.train(ctx, model, openinstruct.dpo_recipe(config), rows)
        return
    arguments = TrlConfig(
        **common_arguments(ctx, device),
        num_train_epochs=config.epochs,
        gradient_accumulation_steps=config.batch_size // config.micro_batch,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of the steps
        max_length=None,  # rows are cut, and counted, above
        loss_type=["sigmoid_norm"],
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        precompute_ref_log_probs=True,
    )
    rows = [
        {**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for row, chosen, rejected in zip(pairs.rows, *reference, strict=True)
    ]
    trainer = PairTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=PairCollator(int(tokenizer.pad_token_id)),  # type: ignore[arg-type]
    )
    found = ctx.checkpoints.latest()
    train(ctx, trainer, Bridge(ctx, METRICS), found[1] if found else None)


def preferred(model: Any, pairs: Pairs, batch: int) -> dict[str, list[float]]:
    """Of each pair: whether the chosen answer has the higher log-probability a token (`dpo_norm`'s measure), and by how much."""
    sides = [label_log_probs(model, pairs.labelled(side), batch) for side in SIDES]
    chosen, rejected = ([total / count for total, count in zip(*side, strict=True)] for side in sides)
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    return {"right": [float(m > 0) for m in margins], "margin": margins}


def compare(ctx: Context[DpoConfig], before: dict[str, list[float]], after: dict[str, list[float]]) -> list[Effect]:
    """Parent against child."""
    effects = [
        effect("preference_accuracy", before["right"], after["right"], better="higher"),
        effect("preference_margin", before["margin"], after["margin"], better="higher", unit="nats a token"),
    ]
    for one in effects:
        ctx.log(f"{one.metric}: {one.before:.4f} -> {one.after:.4f} (difference {one.difference:+.4f} +- {one.difference_stderr:.4f}, n {one.n})")
    return effects


def _shown(ctx: Context[DpoConfig]) -> list[Preference]:
    """The held-out pairs whose answers are kept."""
    return list(islice(read_preferences(ctx.input("heldout").path), ctx.config.samples))


def _answers(ctx: Context[DpoConfig], model: Any, tokenizer: Any, shown: Iterable[Preference]) -> list[str]:
    """Greedy answers."""
    config = ctx.config
    ids = [p[-(config.max_length - config.answer_tokens) :] for p in encode_prompts(tokenizer, [p["prompt"] for p in shown])]
    out = sample(model, ids, max_new=config.answer_tokens, temperature=0.0, seed=config.seed, batch=config.eval_batch)
    return texts(tokenizer, out)
