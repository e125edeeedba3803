"""A user's suite files: tasks looked up in the harness's own index, and the data sets that they read, pinned.

Both are asked of programs of the stages' own environments (stages/core/probing.py): the control plane imports neither
the harness nor a client of the hub.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from flows.source_checks import ask_program
from stages.benchmarks.spec import DataSetSource
from stages.capability.spec import DATA_SETS as CAPABILITY_DATA_SETS
from stages.core.errors import ConfigError
from stages.core.files import write_atomically
from stages.core.preflight import Probe
from stages.lib.evaluation.suite_file import HARNESS, Suite, TaskEntry

LOOKUP, PIN = "stages.lib.evaluation.task_lookup", "stages.benchmarks.pin"
LOOKUP_SECONDS, PIN_SECONDS = 300.0, 300.0
"""The harness's index takes 12 CPU seconds once, a folder or an object store is read whole: limits against hangs."""
UNKNOWN = "unknown"
"""In the place of a commit that could not be asked for: a plan refuses it with a line that says what to do."""


@dataclass(frozen=True)
class LookedUp:
    """One task as the harness defines it."""

    entry: TaskEntry
    data_set: str
    config: str | None
    splits: tuple[str, ...]
    harness_version: str


@dataclass(frozen=True)
class NeededDataSet:
    """A data set that tasks read, as it is to stand in the profile. problem: why its pin is not known."""

    id: str
    source: DataSetSource | None
    problem: str = ""

    @property
    def toml(self) -> str:
        """The lines for a profile; a comment where another node mirrors it."""
        if self.source is None:
            return f"# {self.id}: the node `capability` mirrors it"
        values = self.source.model_dump(exclude_none=True)
        if self.source.origin == "hub":
            values.pop("origin")
        lines = [f"# {self.problem}"] if self.problem else []
        lines.append(f'[node.benchmarks.data_sets."{self.id}"]')
        return "\n".join([*lines, *(f"{name} = {_toml(value)}" for name, value in values.items())])


def look_up(names: Sequence[str], harness: str = HARNESS) -> list[LookedUp]:
    """The tasks of these names, groups as their members, each once. Raises ConfigError for the first that is none."""
    if harness != HARNESS:
        raise ConfigError(f"--harness {harness}: only {HARNESS} has an index of tasks; write the file by hand")
    looked_up: dict[str, LookedUp] = {}
    for answer in _ask(LOOKUP, [{"task": name} for name in names], LOOKUP_SECONDS):
        if not answer["ok"]:
            raise ConfigError(answer["text"])
        for row in json.loads(answer["text"]):
            fields = {key: row[key] for key in ("task", "metric", "filter", "num_fewshot", "version", "execute")}
            looked_up[row["task"]] = LookedUp(
                TaskEntry.model_validate(fields),
                row["data_set"],
                row["config"],
                tuple(row["splits"]),
                row["harness_version"],
            )
    return list(looked_up.values())


def needed_data_sets(tasks: Sequence[LookedUp], place: str) -> list[NeededDataSet]:
    """The data sets that the tasks read, pinned. place: 'hub', a folder of this machine, or s3://bucket/prefix, which
    holds the one data set, or all of them as owner/name.
    """
    by_id: dict[str, list[LookedUp]] = {}
    for task in tasks:
        by_id.setdefault(task.data_set, []).append(task)
    mirrored = [id for id in by_id if id not in CAPABILITY_DATA_SETS.values()]
    requests = [_pin_request(id, by_id[id], _place_of(place, id, len(mirrored))) for id in mirrored]
    answers = dict(zip(mirrored, _ask(PIN, requests, PIN_SECONDS), strict=True)) if requests else {}
    needed: list[NeededDataSet] = []
    for id in by_id:
        if id not in answers:
            needed.append(NeededDataSet(id, None))
        elif answers[id]["ok"]:
            needed.append(NeededDataSet(id, DataSetSource.model_validate_json(answers[id]["text"])))
        elif place == "hub":
            chosen = _chosen(by_id[id])
            problem = f"its commit could not be asked of the hub ({answers[id]['text']})"
            needed.append(NeededDataSet(id, DataSetSource.model_validate({"revision": UNKNOWN} | chosen), problem))
        else:
            raise ConfigError(f"--from {place}: {id}: {answers[id]['text']}")
    return needed


def _place_of(place: str, id: str, count: int) -> str:
    """Where one of several data sets lies."""
    if place == "hub" or place.startswith("s3://"):
        return place if place == "hub" or count == 1 else f"{place.rstrip('/')}/{id}"
    folder = Path(place).absolute()  # the program that reads it is started elsewhere
    if not folder.is_dir():
        raise ConfigError(f"--from {place}: no such folder; give 'hub', a folder, or s3://bucket/prefix")
    return str(folder / id if (folder / id).is_dir() or count > 1 else folder)


def _pin_request(id: str, tasks: Sequence[LookedUp], place: str) -> dict[str, Any]:
    return {"data_set": id, "from": place, **_chosen(tasks)}


def _chosen(tasks: Sequence[LookedUp]) -> dict[str, Any]:
    """The configurations and splits that tasks read; nothing where one of them names none, or they differ."""
    configs = sorted({task.config for task in tasks if task.config is not None})
    splits = {task.splits for task in tasks}
    named = all(task.config is not None for task in tasks)
    return {
        "configs": tuple(configs) if named else None,
        "splits": next(iter(splits)) or None if len(splits) == 1 else None,
    }


def _ask(module: str, requests: Sequence[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """The answers of a program, in the order of the requests."""
    answers: dict[int, dict[str, Any]] = {}
    ask_program(module, [Probe("", "", module, request) for request in requests], answers, seconds)
    silent = {"ok": False, "text": f"{module} gave no answer within {seconds:.0f} s, or cannot be started here"}
    return [answers.get(number, silent) for number in range(len(requests))]


# --- the file -------------------------------------------------------------------------------------------------------


def extended(path: Path, tasks: Sequence[LookedUp], harness: str = HARNESS) -> tuple[str, list[str]]:
    """The text of a suite file with the tasks that it lacks at its end, and their names; the rest stays as it is.

    Raises ConfigError when the file there is no suite, or is another harness's.
    """
    if path.suffix != ".toml":
        raise ConfigError(f"--file {path}: a suite file ends in .toml")
    text = path.read_text(encoding="utf-8") if path.is_file() else _header(tasks, harness)
    present = _parsed(path, text).tasks if path.is_file() else ()
    if path.is_file() and (there := _parsed(path, text).harness) != harness:
        raise ConfigError(f"--file {path} is a suite of {there}, not of {harness}: name another file")
    names = {entry.task for entry in present}
    added = [task.entry for task in tasks if task.entry.task not in names]
    blocks = [_block(entry) for entry in added]
    if blocks:
        text = "\n\n".join([text.rstrip("\n"), *blocks]) + "\n"
        _parsed(path, text)
    return text, [entry.task for entry in added]


def write(path: Path, text: str) -> None:
    """The whole file, or the one that was there. Raises ConfigError where it cannot be written."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise ConfigError(f"--file {path} cannot be written: {error.strerror}") from error


def _parsed(path: Path, text: str) -> Suite:
    try:
        return Suite.model_validate({"name": path.stem} | tomllib.loads(text))
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise ConfigError(f"--file {path}: {what}") from error


def _header(tasks: Sequence[LookedUp], harness: str) -> str:
    return f'harness = "{harness}"\nharness_version = "{tasks[0].harness_version}"\n'


def _block(entry: TaskEntry) -> str:
    values = entry.model_dump(exclude_defaults=True)
    return "\n".join(["[[tasks]]", *(f"{name} = {_toml(value)}" for name, value in values.items())])


def _toml(value: Any) -> str:
    """A value in TOML: JSON's form of strings, numbers, truth values and lists is TOML's too."""
    return json.dumps(list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value)
