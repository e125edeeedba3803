"""Run `sft`: encode, train, keep the child, measure it and its parent, write its card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig as TrlConfig

from stages.core.context import Context
from stages.lib.engines import open_instruct
from stages.lib.finetuning import model_loading, trained_model
from stages.lib.finetuning.encoding import (
    Encoded,
    encode_conversations,
    encode_prompts,
    require_rows,
    selected,
    spells_control,
    tidy,
)
from stages.lib.finetuning.evaluated_model import LazyModel
from stages.lib.finetuning.generation import texts
from stages.lib.finetuning.heldout_evaluation import Measurement, Measurements, compared, measure
from stages.lib.finetuning.model_card import tuning_card, write_samples
from stages.lib.finetuning.trl_trainer import ContextCallback, common_arguments, train
from stages.lib.formats.examples import Message, problem_prompt, read_conversations, read_problems, user
from stages.lib.formats.paired_eval import Effect, as_stats, effect
from stages.lib.verifier import Verifier, in_format
from stages.sft.loss import SmoothedTrainer
from stages.sft.spec import SftConfig

METRICS = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "mean_token_accuracy": "token_accuracy",
}
"""TRL's names and ours."""


class Heldout:
    """Held-out rows, encoded once, on which parent and child are measured alike."""

    def __init__(self, ctx: Context[SftConfig], tokenizer: Any) -> None:
        config = self.config = ctx.config
        self.tokenizer = tokenizer
        conversations = [row["messages"] for row in read_conversations(ctx.input("heldout").path)]
        self.rows = encode_conversations(tokenizer, conversations, config.max_length, config.eval_rows)
        require_rows(ctx, self.rows, "held-out conversations")
        asked = [c for c in conversations if not spells_control(c)][: config.samples]
        self.shown = [(_until_answer(c), c[len(_until_answer(c))]["content"]) for c in asked]
        self.shown += [([user(prompt)], "") for prompt in config.prompts]
        problems = [row for a in ctx.inputs("problems") for row in read_problems(a.path)]
        self.problems = [
            (problem_prompt(p["problem"], config.instruction), p["answer"])
            for p in problems
            if not spells_control([user(p["problem"])])
        ][: config.eval_problems]

    def parts(self) -> list[Measurement]:
        """What is measured: probabilities of the answers; sampled answers; solved problems."""
        written = ("samples", "max_length", "max_new_tokens")
        parts = [
            Measurement("answers", self._probabilities, ("eval_rows", "max_length"), ("heldout",)),
            Measurement(
                "samples",
                lambda subject: self.answer(subject, [p for p, _ in self.shown]),
                ("prompts", *written),
                ("heldout",),
            ),
        ]
        if self.problems:
            asked = [[user(prompt)] for prompt, _ in self.problems]
            settings = ("instruction", "eval_problems", *written)
            parts.append(Measurement("problems", lambda subject: self.answer(subject, asked), settings, ("problems",)))
        return parts

    def _probabilities(self, subject: LazyModel) -> dict[str, Any]:
        sums, counts = subject.log_probs(self.rows.rows)
        return {"nll": [-s for s in sums], "tokens": counts}

    def answer(self, subject: LazyModel, prompts: Sequence[Sequence[Message]]) -> list[str]:
        """Greedy answers."""
        limit = self.config.max_length - self.config.max_new_tokens
        ids = [p[-limit:] for p in encode_prompts(self.tokenizer, prompts)]
        return texts(self.tokenizer, subject.answers(ids, max_new_tokens=self.config.max_new_tokens, temperature=0.0))

    def samples(self, measured: Measurements) -> list[dict[str, Any]]:
        """Prompts with the answers of the data, of the parent and of the child."""
        if (both := measured.both("samples")) is None:
            return []
        answers = zip(self.shown, *both, strict=True)
        return [
            {"prompt": p, "reference": reference, "before": first, "after": second}
            for (p, reference), first, second in answers
        ]


def _until_answer(conversation: Sequence[Message]) -> list[Message]:
    """The turns before the last assistant's."""
    last = max(i for i, m in enumerate(conversation) if m["role"] == "assistant")
    return list(conversation[:last])


def run(ctx: Context[SftConfig]) -> None:
    """Fine-tune."""
    device = model_loading.prepare(ctx)
    template = model_loading.parent_template(ctx, ctx.config.chat_template)
    parent = Path(ctx.input("parent").path)
    tokenizer = model_loading.load_tokenizer(parent, template)
    conversations = (row["messages"] for row in read_conversations(ctx.input("conversations").path))
    data = encode_conversations(tokenizer, conversations, ctx.config.max_length, ctx.config.max_rows)
    require_rows(ctx, data, "conversations")
    if ctx.config.engine == "open-instruct":
        open_instruct.whole_batches(ctx, data)
    heldout = Heldout(ctx, tokenizer)
    ctx.log(
        f"{len(data.rows):,} conversations, {data.tokens:,} tokens, {data.truncated} truncated;"
        f" {len(heldout.rows.rows)} held out"
    )
    checkpoint = ctx.checkpoints.latest()
    if (kept := trained_model.restore(ctx, checkpoint)) is None:
        model = model_loading.load_model(
            parent, model_loading.parent_device(ctx, device), dropout=ctx.config.attention_dropout
        )
        trouble = fine_tune(ctx, model, tokenizer, data, device, checkpoint)
        kept = trained_model.keep(ctx, model, template, data_stats(data, ctx.config)["steps"], **trouble)
        del model
    measured = measure(ctx, "sft", Path(ctx.output("model")), device, heldout.parts())
    effects = compared(ctx, measured, lambda: compare(ctx, heldout, measured))
    stats = {**data.stats(), **data_stats(data, ctx.config), **trained_model.trouble(kept), **measured.stats()}
    folder = trained_model.describe(
        ctx, template, tuning_card(ctx, "sft", stats, effects, ("conversations",)), kept["parameters"]
    )
    ctx.stat(
        **stats, **as_stats(effects), samples=write_samples(folder, heldout.samples(measured), len(ctx.config.prompts))
    )


def data_stats(data: Encoded, config: SftConfig) -> dict[str, Any]:
    """What the run amounted to."""
    steps = -(-len(data.rows) // config.global_batch_size) * config.epochs
    return {"steps": steps, "trained_tokens": data.tokens * config.epochs}


def fine_tune(
    ctx: Context[SftConfig],
    model: Any,
    tokenizer: Any,
    data: Encoded,
    device: torch.device,
    checkpoint: tuple[int, Any] | None = None,
) -> dict[str, Any]:
    """Train in place. checkpoint: the newest one. Returns statistics of the steps that were left out."""
    config = ctx.config
    if config.engine == "open-instruct":
        kept = selected(read_conversations(ctx.input("conversations").path), data.kept)
        open_instruct.train(
            ctx,
            model,
            open_instruct.sft_recipe(config),
            ({"messages": tidy(row["messages"])} for row in kept),
            checkpoint,
        )
        return {}
    arguments = TrlConfig(
        **common_arguments(ctx, device),
        num_train_epochs=config.epochs,
        gradient_accumulation_steps=config.global_batch_size // config.micro_batch_size,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of the steps
        max_length=None,  # rows are cut, and counted, above
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SmoothedTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(data.rows),
        processing_class=tokenizer,
        smoothing=config.label_smoothing,
    )
    bridge = ContextCallback(ctx, METRICS)
    train(ctx, trainer, bridge, checkpoint[1] if checkpoint else None)
    return bridge.guard.statistics()


def compare(ctx: Context[SftConfig], heldout: Heldout, measured: Measurements) -> list[Effect]:
    """Parent against child, as far as both were measured."""
    effects: list[Effect] = []
    if answers := measured.both("answers"):
        before, after = answers
        effects.append(
            effect(
                "answer_loss",
                before["nll"],
                after["nll"],
                better="lower",
                unit="nats a token",
                weights=before["tokens"],
            )
        )
    if solutions := measured.both("problems"):
        effects += _solved(ctx, heldout, *solutions)
    for one in effects:
        ctx.log(
            f"{one.metric}: {one.before:.4f} -> {one.after:.4f} ({one.unit}; difference {one.difference:+.4f} +-"
            f" {one.difference_stderr:.4f}, n {one.n})"
        )
    return effects


def _solved(ctx: Context[SftConfig], heldout: Heldout, before: list[str], after: list[str]) -> list[Effect]:
    """Required format, and right answers, of held-out problems."""
    answers = [answer for _, answer in heldout.problems]
    with Verifier(workers=ctx.config.verify_workers) as verifier:
        right = [
            [v.score for v in verifier.verify_many(list(zip(texts_, answers, strict=True)))]
            for texts_ in (before, after)
        ]
    shaped = [[float(in_format(text)) for text in texts_] for texts_ in (before, after)]
    return [
        effect("format", shaped[0], shaped[1], better="higher"),
        effect("accuracy", right[0], right[1], better="higher"),
    ]
