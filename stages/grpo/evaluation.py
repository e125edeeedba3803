"""pass@1 of parent and child on held-out problems: several samples of each at the recipe's temperature, checked by the verifier."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from stages.core.contracts import Context, InputError
from stages.finetuning.encoding import batched, encode_prompts, spells_control
from stages.finetuning.sampling import sample, texts
from stages.formats import vocabulary
from stages.formats.effects import Effect, effect
from stages.formats.examples import Message, problem_prompt, read_problems, user
from stages.grpo.spec import GrpoConfig
from stages.verifier import Verifier, in_format


@dataclass
class Questions:
    """Prompts, their token ids, reference answers, and what was left out."""

    prompts: list[list[Message]] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    removed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Measured:
    """One model's answers: row by row, the mean over its samples."""

    right: list[float]
    shaped: list[float]
    length: float
    truncated: float
    lengths: list[int]  # tokens of every answer
    first: list[tuple[str, str]]  # the first sample of each problem, and what the verifier made of it


def read_questions(ctx: Context[GrpoConfig], tokenizer: Any, port: str, limit: int | None = None) -> Questions:
    """The problems of an input that can be asked. Raises InputError when none is left, saying why."""
    config, found = ctx.config, Questions()
    for part in batched(islice(read_problems(ctx.input(port).path), limit), 512):
        prompts = [[user(problem_prompt(p["problem"], config.instruction))] for p in part]
        for prompt, ids, problem in zip(prompts, encode_prompts(tokenizer, prompts), part, strict=True):
            if spells_control(prompt):
                found.removed["spells a control token"] += 1
            elif len(ids) > config.max_prompt:
                found.removed["longer than max_prompt"] += 1
            else:
                found.prompts.append(prompt)
                found.ids.append(ids)
                found.answers.append(problem["answer"])
    if not found.prompts:
        why = ", ".join(f"{count} {reason}" for reason, count in found.removed.most_common()) or "it has none"
        raise InputError(f"{ctx.node}: no problem of its input {port} can be asked: {why}")
    return found


class Heldout:
    """Held-out problems on which parent and child are measured alike: same prompts, same seed, same longest response."""

    def __init__(self, ctx: Context[GrpoConfig], tokenizer: Any, questions: Questions) -> None:
        self.config, self.tokenizer, self.questions = ctx.config, tokenizer, questions

    def measure(self, model: Any, verifier: Verifier) -> Measured:
        """Answer and check."""
        config, trials = self.config, self.config.eval_samples
        prompts = [ids for ids in self.questions.ids for _ in range(trials)]
        longest = config.stages[-1].max_response
        out = sample(model, prompts, max_new=longest, temperature=config.temperature, seed=config.seed, batch=config.eval_batch)
        said = texts(self.tokenizer, out)
        answers = [answer for answer in self.questions.answers for _ in range(trials)]
        verdicts = verifier.verify_many(list(zip(said, answers, strict=True)))
        return Measured(
            right=_means([v.score for v in verdicts], trials),
            shaped=_means([float(in_format(text)) for text in said], trials),
            length=round(sum(map(len, out)) / len(out), 4),
            truncated=round(sum(row[-1] != vocabulary.EOS_ID for row in out) / len(out), 6),
            lengths=[len(row) for row in out],
            first=[(said[i], verdicts[i].outcome) for i in range(0, len(said), trials)],
        )


def _means(values: list[float], trials: int) -> list[float]:
    return [sum(values[i : i + trials]) / trials for i in range(0, len(values), trials)]


def compare(ctx: Context[GrpoConfig], before: Measured, after: Measured) -> list[Effect]:
    """Parent against child."""
    trials = ctx.config.eval_samples
    effects = [
        effect("pass_at_1", before.right, after.right, better="higher", trials=trials),
        effect("format", before.shaped, after.shaped, better="higher", trials=trials),
    ]
    for one in effects:
        low, high = one.interval
        ctx.log(f"{one.metric}: {one.before:.4f} -> {one.after:.4f} (difference {low:+.4f} to {high:+.4f}, {one.n} problems x {one.trials} samples)")
    return effects


def samples(heldout: Heldout, before: Measured, after: Measured) -> list[dict[str, Any]]:
    """Held-out problems, the reference, the first answers of parent and child, and what the verifier made of them."""
    questions, rows = heldout.questions, []
    for i in range(min(heldout.config.samples, len(questions.prompts))):
        row: dict[str, Any] = {"prompt": questions.prompts[i], "reference": questions.answers[i]}
        row |= {"before": before.first[i][0], "before_outcome": before.first[i][1]}
        rows.append(row | {"after": after.first[i][0], "after_outcome": after.first[i][1]})
    return rows
