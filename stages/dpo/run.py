"""Run `dpo`: encode pairs, train, keep the child, measure it and its parent, write its card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig as TrlConfig
from trl.trainer.dpo_trainer import DPOTrainer

from stages.core.context import Context
from stages.core.errors import InputError, Preempted
from stages.dpo.pairs import SIDES, PairCollator, Pairs, encode_pairs, tidy_pair
from stages.dpo.spec import DpoConfig
from stages.lib.engines import open_instruct
from stages.lib.finetuning import model_loading, trained_model
from stages.lib.finetuning.encoding import Row, encode_prompts, selected
from stages.lib.finetuning.evaluated_model import LazyModel
from stages.lib.finetuning.generation import texts
from stages.lib.finetuning.heldout_evaluation import Measurement, Measurements, compared, measure
from stages.lib.finetuning.log_probs import label_log_probs
from stages.lib.finetuning.model_card import tuning_card, write_samples
from stages.lib.finetuning.trl_trainer import ContextCallback, common_arguments, train
from stages.lib.formats.examples import Message, read_preferences, user
from stages.lib.formats.paired_eval import Effect, as_stats, effect

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
"""TRL's names and ours. A reward is beta x (sum of the answer's log-ratios): TRL's, not divided by its tokens as the
loss is.
"""


Asked = tuple[list[Message], list[Message], list[Message]]
"""A prompt, with the preferred and the other answer of the data, both empty where the data has none."""


class PairTrainer(DPOTrainer):
    """TRL's trainer on rows that are encoded already and carry the reference's log-probabilities."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [
            *(f"{s}_{c}" for s in SIDES for c in ("ids", "mask")),
            "ref_chosen_logps",
            "ref_rejected_logps",
        ]


def run(ctx: Context[DpoConfig]) -> None:
    """Tune on pairs."""
    config = ctx.config
    device = model_loading.prepare(ctx)
    template = model_loading.parent_template(ctx)
    parent = Path(ctx.input("parent").path)
    tokenizer = model_loading.load_tokenizer(parent, template)
    pairs = _pairs(ctx, tokenizer, "preferences", config.max_rows)
    if config.engine == "open-instruct":
        open_instruct.whole_batches(ctx, pairs)
    heldout = _pairs(ctx, tokenizer, "heldout", config.eval_rows)
    ctx.log(
        f"{len(pairs.rows):,} pairs, {pairs.tokens:,} tokens, {pairs.truncated} truncated; {len(heldout.rows)} held out"
    )
    steps = -(-len(pairs.rows) // config.global_batch_size) * config.epochs
    checkpoint = ctx.checkpoints.latest()
    if (kept := trained_model.restore(ctx, checkpoint)) is None:
        model = model_loading.load_model(
            parent, model_loading.parent_device(ctx, device), dropout=config.attention_dropout
        )
        trouble = tune(ctx, model, tokenizer, pairs, device, checkpoint)
        kept = trained_model.keep(ctx, model, template, steps, **trouble)
        del model
    shown = _shown(ctx)
    measured = measure(ctx, "dpo", Path(ctx.output("model")), device, _parts(ctx, tokenizer, heldout, shown))
    effects = compared(ctx, measured, lambda: compare(ctx, measured))
    stats = {
        "rows": len(pairs.rows),
        "tokens": pairs.tokens,
        "truncation_rate": round(pairs.truncated / len(pairs.rows), 6),
        "removed": dict(sorted(pairs.removed.items())),
        "steps": steps,
        **trained_model.trouble(kept),
        **measured.stats(),
    }
    folder = trained_model.describe(
        ctx, template, tuning_card(ctx, "dpo", stats, effects, ("preferences",)), kept["parameters"]
    )
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected, "before": one, "after": two}
        for (prompt, chosen, rejected), one, two in zip(shown, *(measured.both("samples") or ([], [])), strict=False)
    ]
    ctx.stat(**stats, **as_stats(effects), samples=write_samples(folder, rows, len(ctx.config.prompts)))


def _parts(ctx: Context[DpoConfig], tokenizer: Any, heldout: Pairs, shown: Sequence[Asked]) -> list[Measurement]:
    """What is measured: which answers are preferred, and sampled answers."""
    return [
        Measurement(
            "preferences",
            lambda subject: preferred(subject.log_probs, heldout),
            ("eval_rows", "max_length", "turns"),
            ("heldout",),
        ),
        Measurement(
            "samples",
            lambda subject: _answers(ctx, subject, tokenizer, shown),
            ("samples", "prompts", "max_length", "max_new_tokens"),
            ("heldout",),
        ),
    ]


def _pairs(ctx: Context[DpoConfig], tokenizer: Any, port: str, max_rows: int | None) -> Pairs:
    """The pairs of an input. Raises InputError when none is left, saying why."""
    encoded = encode_pairs(tokenizer, read_preferences(ctx.input(port).path), ctx.config, max_rows)
    if not encoded.rows:
        why = ", ".join(f"{count} {reason}" for reason, count in encoded.removed.most_common()) or "it has none"
        raise InputError(f"{ctx.node}: no pair of its input {port} can be used: of {encoded.seen}, {why}")
    return encoded


def tune(
    ctx: Context[DpoConfig],
    model: Any,
    tokenizer: Any,
    pairs: Pairs,
    device: torch.device,
    checkpoint: tuple[int, Any] | None = None,
) -> dict[str, Any]:
    """Train in place. checkpoint: the newest one. Returns statistics of the steps that were left out."""
    config = ctx.config
    if config.engine == "open-instruct":
        kept = selected(read_preferences(ctx.input("preferences").path), pairs.kept)
        rows = ({side: [*p["prompt"], *p[side]] for side in SIDES} for p in map(tidy_pair, kept))
        open_instruct.train(ctx, model, open_instruct.dpo_recipe(config), rows, checkpoint)
        return {}
    arguments = TrlConfig(
        **common_arguments(ctx, device),
        num_train_epochs=config.epochs,
        gradient_accumulation_steps=config.global_batch_size // config.micro_batch_size,
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
        for row, chosen, rejected in zip(pairs.rows, *reference(ctx, model, pairs, device), strict=True)
    ]
    trainer = PairTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=PairCollator(int(tokenizer.pad_token_id)),  # type: ignore[arg-type]
    )
    bridge = ContextCallback(ctx, METRICS)
    train(ctx, trainer, bridge, checkpoint[1] if checkpoint else None)
    return bridge.guard.statistics()


def reference(ctx: Context[DpoConfig], model: Any, pairs: Pairs, device: torch.device) -> list[list[float]]:
    """Log-probabilities of the chosen and of the rejected answers under the parent, in the precision that training
    computes in.

    For engine 'trl'; open-instruct makes its own.
    """
    read = 0

    def advance(rows: int) -> None:
        nonlocal read
        read += rows
        ctx.progress(read, 2 * len(pairs.rows), "answers under the reference")
        if ctx.stopping:
            raise Preempted("stopped while the reference was computed; the next run begins with it")

    with torch.autocast(device.type, torch.bfloat16, enabled=ctx.config.precision == "bf16"):
        return [label_log_probs(model, pairs.labelled(side), ctx.config.eval_tokens, advance)[0] for side in SIDES]


def preferred(log_probs: Callable[[list[Row]], tuple[list[float], list[int]]], pairs: Pairs) -> dict[str, list[float]]:
    """Of each pair: whether the chosen answer has the higher log-probability a token (`dpo_norm`'s measure), and by how
    much.
    """
    sides = [log_probs(pairs.labelled(side)) for side in SIDES]
    chosen, rejected = ([total / count for total, count in zip(*side, strict=True)] for side in sides)
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    return {"right": [float(m > 0) for m in margins], "margin": margins}


def compare(ctx: Context[DpoConfig], measured: Measurements) -> list[Effect]:
    """Parent against child, as far as both were measured."""
    if (both := measured.both("preferences")) is None:
        return []
    before, after = both
    effects = [
        effect("preference_accuracy", before["right"], after["right"], better="higher"),
        effect("preference_margin", before["margin"], after["margin"], better="higher", unit="nats a token"),
    ]
    for one in effects:
        ctx.log(
            f"{one.metric}: {one.before:.4f} -> {one.after:.4f} (difference {one.difference:+.4f} +-"
            f" {one.difference_stderr:.4f}, n {one.n})"
        )
    return effects


def _shown(ctx: Context[DpoConfig]) -> list[Asked]:
    """What is asked, and the data's own answers: of held-out pairs, and of prompts that have none."""
    pairs = islice(read_preferences(ctx.input("heldout").path), ctx.config.samples)
    return [(p["prompt"], p["chosen"], p["rejected"]) for p in pairs] + [
        ([user(prompt)], [], []) for prompt in ctx.config.prompts
    ]


def _answers(ctx: Context[DpoConfig], subject: LazyModel, tokenizer: Any, shown: Sequence[Asked]) -> list[str]:
    """Greedy answers."""
    config = ctx.config
    ids = [
        p[-(config.max_length - config.max_new_tokens) :]
        for p in encode_prompts(tokenizer, [prompt for prompt, _, _ in shown])
    ]
    return texts(tokenizer, subject.answers(ids, max_new_tokens=config.max_new_tokens, temperature=0.0))
