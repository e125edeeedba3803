"""pass@1 of parent and child on held-out problems: several samples of each at the recipe's temperature, checked by the
verifier.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from stages.core.context import Context
from stages.core.errors import InputError
from stages.grpo.spec import GrpoConfig
from stages.lib.finetuning.encoding import batched, encode_prompts, spells_control
from stages.lib.finetuning.evaluated_model import LazyModel
from stages.lib.finetuning.generation import texts
from stages.lib.finetuning.heldout_evaluation import Measurement
from stages.lib.formats import vocabulary
from stages.lib.formats.examples import Message, problem_prompt, read_problems, user
from stages.lib.formats.paired_eval import Effect, effect
from stages.lib.verifier import Verifier, in_format


@dataclass
class Questions:
    """Prompts, their token ids, reference answers, and what was left out."""

    prompts: list[list[Message]] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    removed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Answered:
    """One model's answers: row by row, the mean over its samples."""

    right: list[float]
    shaped: list[float]
    length: float
    truncated: float
    lengths: list[int]  # tokens of every answer
    first: list[list[str]]  # the first sample of the problems that are shown, and what the verifier made of it


def read_questions(ctx: Context[GrpoConfig], tokenizer: Any, port: str, limit: int | None = None) -> Questions:
    """The problems of an input that can be asked. Raises InputError when none is left, saying why."""
    config, questions = ctx.config, Questions()
    for part in batched(islice(read_problems(ctx.input(port).path), limit), 512):
        prompts = [[user(problem_prompt(p["problem"], config.instruction))] for p in part]
        for prompt, ids, problem in zip(prompts, encode_prompts(tokenizer, prompts), part, strict=True):
            if spells_control(prompt):
                questions.removed["spells a control token"] += 1
            elif len(ids) > config.max_prompt_length:
                questions.removed["longer than max_prompt_length"] += 1
            else:
                questions.prompts.append(prompt)
                questions.ids.append(ids)
                questions.answers.append(problem["answer"])
    if not questions.prompts:
        why = ", ".join(f"{count} {reason}" for reason, count in questions.removed.most_common()) or "it has none"
        raise InputError(f"{ctx.node}: no problem of its input {port} can be asked: {why}")
    return questions


class Heldout:
    """Held-out problems on which parent and child are measured alike: same prompts, same seed, same longest
    response.
    """

    def __init__(self, ctx: Context[GrpoConfig], tokenizer: Any, questions: Questions) -> None:
        self.config, self.tokenizer, self.questions = ctx.config, tokenizer, questions

    def part(self) -> Measurement:
        """What is measured: answers, checked."""
        names = (
            "eval_problems",
            "eval_samples",
            "samples",
            "context_phases",
            "max_prompt_length",
            "instruction",
            "temperature",
            "verifier_rule",
        )
        return Measurement("problems", lambda subject: asdict(self.measure(subject)), names, ("heldout",))

    def measure(self, subject: LazyModel) -> Answered:
        """Answer and check."""
        config, trials = self.config, self.config.eval_samples
        prompts = [ids for ids in self.questions.ids for _ in range(trials)]
        out = subject.answers(
            prompts, max_new_tokens=config.context_phases[-1].max_response_length, temperature=config.temperature
        )
        said = texts(self.tokenizer, out)
        answers = [answer for answer in self.questions.answers for _ in range(trials)]
        with Verifier(workers=config.verify_workers, rule=config.verifier_rule) as verifier:
            verdicts = verifier.verify_many(list(zip(said, answers, strict=True)))
        return Answered(
            right=_means([v.score for v in verdicts], trials),
            shaped=_means([float(in_format(text)) for text in said], trials),
            length=round(sum(map(len, out)) / len(out), 4),
            truncated=round(sum(row[-1] != vocabulary.EOS_ID for row in out) / len(out), 6),
            lengths=[len(row) for row in out],
            first=[[said[i], str(verdicts[i].outcome)] for i in range(0, len(said), trials)][: config.samples],
        )


def _means(values: list[float], trials: int) -> list[float]:
    return [sum(values[i : i + trials]) / trials for i in range(0, len(values), trials)]


def compare(ctx: Context[GrpoConfig], before: Answered, after: Answered) -> list[Effect]:
    """Parent against child."""
    trials = ctx.config.eval_samples
    effects = [
        effect("pass_at_1", before.right, after.right, better="higher", trials=trials),
        effect("format", before.shaped, after.shaped, better="higher", trials=trials),
    ]
    for one in effects:
        low, high = one.interval
        ctx.log(
            f"{one.metric}: {one.before:.4f} -> {one.after:.4f} (difference {low:+.4f} to {high:+.4f}, {one.n} problems"
            f" x {one.trials} samples)"
        )
    return effects


def samples(heldout: Heldout, before: Answered, after: Answered) -> list[dict[str, Any]]:
    """Held-out problems, the reference, the first answers of parent and child, and what the verifier made of them."""
    questions, rows = heldout.questions, []
    for i in range(min(heldout.config.samples, len(questions.prompts))):
        row: dict[str, Any] = {"prompt": questions.prompts[i], "reference": questions.answers[i]}
        row |= {"before": before.first[i][0], "before_outcome": before.first[i][1]}
        rows.append(row | {"after": after.first[i][0], "after_outcome": after.first[i][1]})
    return rows
