"""What an evaluation takes, task by task, by what each took in its rehearsal.

Questions that are read take as long each. Answers are written side by side, and a batch that is not full takes nearly
as long as one that is: where the rehearsal filled one, answers are counted, else batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from flows.rehearsal.report import Measured, TaskTime


@dataclass(frozen=True)
class Asked:
    """What a configuration asks of one task. limit: documents, None: all; new_tokens: None: as the harness says."""

    limit: int | None
    repeats: int
    new_tokens: int | None


def asked(config: Any) -> Mapping[str, Asked]:
    """Of each task, by the name that the attempt gives it in its statistic `parts`; {}: it is no evaluation."""
    if suites := getattr(config, "suites", ()):
        return {
            f"{suite.name}/{task.task}": Asked(task.limit, task.repeats, task.max_new_tokens)
            for suite in suites
            for task in suite.tasks
        }
    if hasattr(config, "limit") and hasattr(config, "max_new_tokens"):
        names = getattr(config, "benchmarks", ())
        return {name: Asked(config.limit, 1, config.max_new_tokens) for name in names}
    return {}


def seconds(config: Any, questions: int, one: Measured, processor: bool) -> tuple[float, float, float] | None:
    """From, likely, to, by the clock or of processors; None: the attempt does not tell of each task. questions: that a
    data set made here asks; 0: it is not made here, and the rehearsal had all of it.
    """
    every = asked(config)
    if not every or set(every) != set(one.parts):
        return None
    grown = [
        (one.parts[name], growth(one.parts[name], task, config.batch_size, questions)) for name, task in every.items()
    ]
    whole = one.cpu_seconds if processor else one.seconds
    times = [(part.cpu_seconds if processor else part.seconds, more) for part, more in grown]
    rest = max(0.0, whole - sum(spent for spent, _ in times))
    least, likely, most = (rest + sum(spent * more[number] for spent, more in times) for number in range(3))
    return least, likely, most


def growth(part: TaskTime, task: Asked, batch: int, questions: int) -> tuple[float, float, float]:
    """How many times as long a task takes as in its rehearsal: from, likely, to."""
    documents = _documents(part, task.limit, questions)
    if not part.answers:
        more = documents / part.documents
        return more, more, more
    longer = task.new_tokens / part.new_tokens if task.new_tokens and part.new_tokens else 1.0
    answers = documents * task.repeats
    by_answers = answers / part.answers * longer
    by_batches = ceil(answers / batch) / ceil(part.answers / batch) * longer
    likely = by_answers if part.answers >= batch else by_batches
    return min(by_answers, by_batches), likely, max(by_answers, by_batches)


def _documents(part: TaskTime, limit: int | None, questions: int) -> int:
    """That a task asks. The limit is of each of its data sets: how many it has, the rehearsal's own limit tells."""
    every = questions or part.of
    if limit is None:
        return every
    return min(every, limit * (ceil(part.documents / part.limit) if part.limit else 1))
