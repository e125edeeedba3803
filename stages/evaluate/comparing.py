"""Whether a score may stand beside the paper's number, and each reason why not. Light."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stages.lib.evaluation.suite_file import Suite, TaskEntry, load, shipped

HALVES = frozenset({"float16", "bfloat16"})


@dataclass(frozen=True)
class Facts:
    """How an entry was scored. absent: tasks of its group without data, of how many; joined: answers that were encoded
    apart; stored: the weights' dtype in the model's folder; dtype: theirs while scoring.
    """

    harness_version: str
    task_version: str
    n: int
    n_total: int
    synthetic: bool
    truncated: int
    joined: int
    absent: tuple[int, int]
    fingerprint: str | None
    stored: str | None
    dtype: str


def reasons(suite: Suite, entry: TaskEntry, facts: Facts) -> list[str]:
    """Why a score is not comparable to the paper's; none: it is. In no reason is there a '; '."""
    return [*_of_the_data(entry, facts), *_of_the_suite(suite, facts), *_of_the_entry(suite, entry, facts)]


def title(suite: Suite) -> str:
    """'Table 3' of a suite that repeats one."""
    return (suite.table or suite.name).replace("_", " ").capitalize()


def _of_the_data(entry: TaskEntry, facts: Facts) -> Iterator[str]:
    if facts.synthetic:
        yield "the data set was made from this run's own documents"
    elif entry.fingerprint and facts.fingerprint != entry.fingerprint:
        held = (facts.fingerprint or "unknown")[:12]
        yield f"its questions have the fingerprint {held}, not {entry.fingerprint[:12]}"
    if facts.n < facts.n_total:
        yield f"{facts.n} of {facts.n_total} documents"
    absent, of = facts.absent
    if absent:
        yield f"{of - absent} of {of} tasks of the group"
    if facts.truncated:
        yield f"{facts.truncated} requests were longer than the context and lost their beginning"
    if facts.joined:
        yield f"{facts.joined} answers were encoded apart from their questions: a piece of the vocabulary spans both"


def _of_the_suite(suite: Suite, facts: Facts) -> Iterator[str]:
    if suite.table is None:
        yield "the suite repeats no table of the paper"
    if suite.paper_harness not in (None, suite.harness):
        yield f"{title(suite)} was scored by {suite.paper_harness}, this by {suite.harness}"
    if suite.harness_version not in (None, facts.harness_version):
        yield f"{suite.harness} {facts.harness_version}, the suite is of {suite.harness_version}"
    if facts.stored in HALVES and facts.dtype in HALVES and facts.stored != facts.dtype:
        yield f"scored in {facts.dtype}, the weights are {facts.stored}"


def _of_the_entry(suite: Suite, entry: TaskEntry, facts: Facts) -> Iterator[str]:
    """What a configuration changed against the suite that comes with the project for the same table."""
    if entry.version not in (None, facts.task_version):
        yield f"version {facts.task_version} of the task, the suite is of {entry.version}"
    table = _shipped(suite)
    if table is None:
        return
    said = next((e for e in table.tasks if e.task == entry.task and e.column == entry.column), None)
    if said is None:
        yield f"task {entry.task} is none of {title(suite)}"
        return
    if entry.num_fewshot != said.num_fewshot:
        yield f"{entry.num_fewshot} shots, {title(suite)} has {said.num_fewshot}"
    if (entry.chat_template, entry.system) != (said.chat_template, said.system):
        yield f"asked {_prompt(entry)}, {title(suite)} {_prompt(said)}"
    for key in ("metric", "filter", "repeats", "temperature", "top_p", "max_new_tokens"):
        ours, theirs = getattr(entry, key), getattr(said, key)
        if ours != theirs:
            what = "as the task says" if theirs is None else theirs
            yield f"{key} {'as the task says' if ours is None else ours}, {title(suite)} {what}"


def _shipped(suite: Suite) -> Suite | None:
    """The suite of this project for the same table and harness, whatever a changed one is called."""
    if suite.table is None:
        return None
    suites = (load(name) for name in shipped())
    return next((s for s in suites if (s.table, s.harness) == (suite.table, suite.harness)), None)


def _prompt(entry: TaskEntry) -> str:
    if not entry.chat_template:
        return "without a chat template"
    return "through a chat template" + (" with a system message" if entry.system else "")
