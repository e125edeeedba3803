"""DeepScaleR's pipeline (its data/preprocess): a problem is kept when it can be graded and says
something new.

1. an answer: stated, or the last box of the solution (`stages.problems.hub`)
2. gradable: no proof, no choice of letters, no several parts; the answer's normal form may be compared, and the
verifier accepts the
   answer as its own reference
3. not redundant: no cosine above `max_similarity` with an earlier problem that is kept
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stages.core.context import Context
from stages.lib.formats.examples import Problem, Reject, fingerprint, problem_fault
from stages.lib.verifier import Verifier
from stages.lib.verifier.deepscaler_rule import is_gradable
from stages.problems.embedding import embedder, redundant
from stages.problems.spec import ProblemsConfig

BATCH = 1000
"""Answers that are verified between two reports of progress."""
_PROOF_ASKED = re.compile(r"(?:^|[.;:!?]\s+)(?:prove|show|demonstrate|verify) (?:that|the|this|if|for)\b", re.I)
_PROOF_ANSWER = re.compile(
    r"\b(?:proof|proven|proved|see solution|q\.?e\.?d\.?|not found|none given)\b|\\blacksquare|\\square", re.I
)
_LETTER = re.compile(r"\\?(?:text|textbf|mathrm|mathbf)?\{?\(?([A-E])\)?\.?\}?\Z")
_OPTIONS = re.compile(r"(?<![A-Za-z])[A-E][).:].{1,200}?(?<![A-Za-z])[B-E][).:]", re.S)
_PART = re.compile(r"\((?:[a-c]|i{1,3}|[1-3])\)\s*\S", re.I)


def ungradable(problem: str, answer: str) -> str | None:
    """Why no rule can grade the problem, from its text alone; None when one may."""
    if _PROOF_ASKED.search(problem) or _PROOF_ANSWER.search(answer):
        return "proof"
    if _LETTER.match(answer.strip()) and _OPTIONS.search(problem):
        return "multiple choice"
    if len(_PART.findall(answer)) > 1:
        return "several parts"
    return None if is_gradable(answer) else "answer cannot be compared"


def selected(ctx: Context[ProblemsConfig], rows: Iterator[Problem], reject: Reject) -> Iterator[Problem]:
    """The problems that pass every step, in order; the others are rejected with the reason. Says how many each step
    left.
    """
    funnel: dict[str, int] = {}
    good = _stated(rows, reject, funnel)
    good = _gradable(ctx, good, reject)
    funnel["gradable"] = len(good)
    good = _new(ctx, good, reject)
    funnel["not redundant"] = len(good)
    ctx.stat(funnel=funnel)
    yield from good


def _stated(rows: Iterator[Problem], reject: Reject, funnel: dict[str, int]) -> list[Problem]:
    good: list[Problem] = []
    seen: set[bytes] = set()
    read = 0
    for row in rows:
        read += 1
        mark = fingerprint(row["problem"] or "")
        fault = problem_fault(row) or ("duplicate" if mark in seen else None)
        seen.add(mark)
        if fault:
            reject(fault)
        else:
            good.append(row)
    funnel.update({"read": read, "with an answer, once": len(good)})
    return good


def _gradable(ctx: Context[ProblemsConfig], rows: list[Problem], reject: Reject) -> list[Problem]:
    good: list[Problem] = []
    for row in rows:
        if reason := ungradable(row["problem"], row["answer"]):
            reject(reason)
        else:
            good.append(row)
    accepted = _accepted(ctx, sorted({row["answer"] for row in good}))
    for _ in range(sum(row["answer"] not in accepted for row in good)):
        reject("verifier refuses the answer")
    return [row for row in good if row["answer"] in accepted]


def _accepted(ctx: Context[ProblemsConfig], answers: list[str]) -> set[str]:
    """The answers that the verifier takes for themselves, each judged once."""
    accepted: set[str] = set()
    with Verifier(ctx.config.verify_workers, ctx.config.verifier_rule) as verifier:
        for at in range(0, len(answers), BATCH):
            ctx.progress(at, len(answers), "answers verified")
            batch = answers[at : at + BATCH]
            accepted.update(
                a for a, right in zip(batch, verifier.accepts([(a, a) for a in batch]), strict=True) if right
            )
    return accepted


def _new(ctx: Context[ProblemsConfig], rows: list[Problem], reject: Reject) -> list[Problem]:
    config = ctx.config
    if (
        config.origin == "machine" or config.max_similarity == 1.0 or not rows
    ):  # generated ones differ in digits, not in words
        return rows
    vectors = embedder(config.embedding, f"{ctx.node}.embedding")([row["problem"] for row in rows])
    again = redundant(vectors, config.max_similarity)
    for _ in range(int(again.sum())):
        reject("redundant")
    ctx.stat(embedding=config.embedding)
    return [row for row, is_again in zip(rows, again, strict=True) if not is_again]
