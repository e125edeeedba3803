"""Run `sft`: encode, measure the parent, train, measure the child, write its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig as TrlConfig

from stages.core.contracts import Context
from stages.engines import openinstruct
from stages.finetuning import models
from stages.finetuning.card import tuning_card, write_samples
from stages.finetuning.encoding import (
    Encoded,
    encode_conversations,
    encode_prompts,
    require_rows,
    selected,
    spells_control,
)
from stages.finetuning.measures import label_log_probs
from stages.finetuning.sampling import sample, texts
from stages.finetuning.trainer import Bridge, common_arguments, train
from stages.formats.effects import Effect, as_stats, effect
from stages.formats.examples import Message, problem_prompt, read_conversations, read_problems, user
from stages.sft.loss import SmoothedTrainer
from stages.sft.spec import SftConfig
from stages.verifier import Verifier, in_format

METRICS = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm", "entropy": "entropy", "mean_token_accuracy": "token_accuracy"}
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
        problems = [row for a in ctx.inputs("problems") for row in read_problems(a.path)]
        self.problems = [
            (problem_prompt(p["problem"], config.instruction), p["answer"]) for p in problems if not spells_control([user(p["problem"])])
        ][: config.problem_rows]

    def measure(self, model: Any) -> dict[str, Any]:
        """Log-probabilities of the answers; sampled answers; solved problems."""
        sums, counts = label_log_probs(model, self.rows.rows, self.config.eval_batch)
        found: dict[str, Any] = {"nll": [-s for s in sums], "tokens": counts, "samples": self.answer(model, [p for p, _ in self.shown])}
        if self.problems:
            found["solutions"] = self.answer(model, [[user(prompt)] for prompt, _ in self.problems])
        return found

    def answer(self, model: Any, prompts: Sequence[Sequence[Message]]) -> list[str]:
        """Greedy answers."""
        limit = self.config.max_length - self.config.answer_tokens
        ids = [p[-limit:] for p in encode_prompts(self.tokenizer, prompts)]
        out = sample(model, ids, max_new=self.config.answer_tokens, temperature=0.0, seed=self.config.seed, batch=self.config.eval_batch)
        return texts(self.tokenizer, out)


def _until_answer(conversation: Sequence[Message]) -> list[Message]:
    """The turns before the last assistant's."""
    last = max(i for i, m in enumerate(conversation) if m["role"] == "assistant")
    return list(conversation[:last])


def run(ctx: Context[SftConfig]) -> None:
    """Fine-tune."""
    device = models.prepare(ctx)
    template = models.parent_template(ctx, ctx.config.chat_template)
    parent = Path(ctx.input("parent").path)
    tokenizer = models.load_tokenizer(parent, template)
    conversations = (row["messages"] for row in read_conversations(ctx.input("conversations").path))
    data = encode_conversations(tokenizer, conversations, ctx.config.max_length, ctx.config.max_rows)
    require_rows(ctx, data, "conversations")
    heldout = Heldout(ctx, tokenizer)
    ctx.log(f"{len(data.rows):,} conversations, {data.tokens:,} tokens, {data.truncated} truncated; {len(heldout.rows.rows)} held out")
    model = models.load_model(parent, device)
    before = heldout.measure(model)
    fine_tune(ctx, model, tokenizer, data, device)
    after = heldout.measure(model)
    effects = compare(ctx, heldout, before, after)
    stats = {**data.stats(), **data_stats(data, ctx.config)}
    folder = models.describe_child(ctx, model, template, tuning_card(ctx, "sft", stats, effects, ("conversations",)))
    answers = zip(heldout.shown, before["samples"], after["samples"], strict=True)
    rows = [{"prompt": p, "reference": reference, "before": first, "after": second} for (p, reference), first, second in answers]
    ctx.stat(**stats, **as_stats(effects), samples=write_samples(folder, rows))


def data_stats(data: Encoded, config: SftConfig) -> dict[str, Any]:
    """What the run amounted to."""
    steps = -(-len(data.rows) // config.batch_size) * config.epochs
    return {"steps": steps, "trained_tokens": data.tokens * config.epochs}


def fine_tune(ctx: Context[SftConfig], model: Any, tokenizer: Any, data: Encoded, device: torch.device) -> None:
    """Train in place."""
    config = ctx.config
    if config.engine == "open-instruct":
        kept = selected(read_conversations(ctx.input("conversations").path), data.kept)
        openinstruct.train(ctx, model, openinstruct.sft_recipe(config), ({"messages": row["messages"]} for row in kept))
        return
    arguments = TrlConfig(
        **common_arguments(ctx, device),
        num_train_epochs=config.epochs,
        gradient_accumulation_steps=config.batch_size // config.micro_batch,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of the steps
        max_length=None,  # rows are cut, and counted, above
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SmoothedTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(data.rows), processing_class=tokenizer, smoothing=config.label_smoothing
    )
    found = ctx.checkpoints.latest()
    train(ctx, trainer, Bridge(ctx, METRICS), found[1] if found else None)


def compare(ctx: Context[SftConfig], heldout: Heldout, before: dict[str, Any], after: dict[str, Any]) -> list[Effect]:
    """Parent against child."""
    effects = [effect("answer_loss", before["nll"], after["nll"], better="lower", unit="nats a token", weights=before["tokens"])]
    if heldout.problems:
        effects += _solved(ctx, heldout, before["solutions"], after["solutions"])
    for one in effects:
        ctx.log(f"{one.metric}: {one.before:.4f} -> {one.after:.4f} ({one.unit}; difference {one.difference:+.4f} +- {one.difference_stderr:.4f}, n {one.n})")
    return effects


def _solved(ctx: Context[SftConfig], heldout: Heldout, before: list[str], after: list[str]) -> list[Effect]:
    """Required format, and right answers, of held-out problems."""
    answers = [answer for _, answer in heldout.problems]
    with Verifier(workers=ctx.config.verify_workers) as verifier:
        right = [[v.score for v in verifier.verify_many(list(zip(texts_, answers, strict=True)))] for texts_ in (before, after)]
    shaped = [[float(in_format(text)) for text in texts_] for texts_ in (before, after)]
    return [
        effect("format", shaped[0], shaped[1], better="higher"),
        effect("accuracy", right[0], right[1], better="higher"),
    ]
