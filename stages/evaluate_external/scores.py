"""What a harness said of a suite's tasks, as rows of the common report, each with why it is not the paper's number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stages.core.errors import InputError
from stages.lib.evaluation.harnesses.outcomes import Outcome
from stages.lib.evaluation.suite_file import Suite, TaskEntry, load, shipped
from stages.lib.formats.reports import TOY, Score
from stages.lib.formats.suites import DataSet, data_set_sha256

LIMITS = ("limit", "fingerprint")
"""Settings whose effect is looked at itself."""


@dataclass(frozen=True)
class Held:
    """A task's data set as it was wired. rows: documents in the split that is scored; None: it does not say."""

    data_set: DataSet
    rows: int | None
    sha256: str | None

    @property
    def synthetic(self) -> bool:
        """Whether its questions were made here."""
        return self.data_set.origin == "machine"


def held(data_set: DataSet, config: str | None, split: str) -> Held:
    """What the listing says of one configuration, or of all that have the split where None is asked."""
    chosen = data_set.config_name(config) if config else None
    names = [chosen] if chosen else [name for name, splits in data_set.rows.items() if split in splits]
    counts = [data_set.rows[name][split] for name in names if split in data_set.rows[name]]
    prints = {n: {split: data_set.fingerprint.get(n, {}).get(split, "")} for n in names}
    one = next(iter(prints.values()))[split] if len(prints) == 1 else data_set_sha256(prints)
    whole = all(value[split] for value in prints.values())
    return Held(data_set, sum(counts) if counts else None, one if prints and whole else None)


def rows(
    suite: Suite, outcomes: Mapping[str, Outcome], data: Mapping[str, Held], trained_on: tuple[str, ...]
) -> Iterator[Score]:
    """Every metric of every task. Raises InputError where the entry's own metric is not among them."""
    for entry in suite.tasks:
        outcome, source = outcomes[entry.task], data.get(entry.task)
        if entry.metric is not None and entry.metric not in outcome.metrics:
            raise InputError(
                f"suite {suite.name}, task {entry.task}: there is no metric '{entry.metric}'; {suite.harness} gives"
                f" {', '.join(outcome.metrics)}"
            )
        headline = entry.metric or next(iter(outcome.metrics))
        total = outcome.n_total or (source.rows if source else None) or outcome.n
        why = list(dict.fromkeys(_reasons(suite, entry, outcome, source, total)))
        synthetic = source is not None and source.synthetic
        name = outcome.data_set.partition("/")[2] or outcome.data_set
        for metric, (value, stderr) in outcome.metrics.items():
            yield Score(
                suite=suite.name,
                task=entry.task,
                metric=metric,
                headline=metric == headline,
                value=value,
                stderr=stderr,
                n=outcome.n,
                n_total=max(total, outcome.n),
                num_fewshot=entry.num_fewshot,
                data_set=source.data_set.id if source else outcome.data_set,
                data_config=outcome.data_config,
                data_fingerprint=source.sha256 if source else None,
                split=outcome.split,
                task_version=outcome.version,
                truncated=0,
                in_domain=(f"{TOY}{name}" if synthetic else name) in trained_on,
                repeats=entry.repeats,
                chat_template=entry.chat_template,
                generation=dict(outcome.generation) if outcome.generation is not None else None,
                comparable_to_paper=not why,
                note="; ".join(why),
                toy=synthetic,
                table=suite.table,
                column=entry.column if suite.table else None,
            )


def _reasons(suite: Suite, entry: TaskEntry, outcome: Outcome, source: Held | None, total: int) -> Iterator[str]:
    """Why a score is not comparable to the paper's; none: it is. In no reason is there a '; '."""
    table = (suite.table or suite.name).replace("_", " ").capitalize()
    if source is None:
        yield "its data set is not one of the mirrors that were wired"
    elif source.synthetic:
        yield "the data set was made from this run's own documents"
    elif entry.fingerprint and source.sha256 != entry.fingerprint:
        yield f"its questions have the fingerprint {(source.sha256 or 'unknown')[:12]}, not {entry.fingerprint[:12]}"
    if outcome.n < total:
        yield f"{outcome.n} of {total} documents"
    if suite.table is None:
        yield "the suite repeats no table of the paper"
    if suite.paper_harness not in (None, suite.harness):
        yield f"{table} was scored by {suite.paper_harness}, this by {suite.harness}"
    said = _shipped(suite, entry)
    if suite.table is not None and said is None:
        yield f"task {entry.task} is none of {table}"
    for key in TaskEntry.model_fields if said else ():
        if key not in LIMITS and getattr(entry, key) != getattr(said, key):
            yield f"{key} {getattr(entry, key)}, {table} has {getattr(said, key)}"
    yield from outcome.notes


def _shipped(suite: Suite, entry: TaskEntry) -> TaskEntry | None:
    """The entry of this project's own suite for the same table and harness, whatever a changed one is called."""
    suites = (load(name) for name in shipped())
    same = (s for s in suites if suite.table and (s.table, s.harness) == (suite.table, suite.harness))
    return next((each for s in same for each in s.tasks if each.task == entry.task), None)
