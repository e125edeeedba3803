"""What the adapters of all harnesses share: where a run lies, what a harness said of a task, and its files read with
care. Light.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.core.json_text import parsed_json
from stages.lib.evaluation.suite_file import Suite, TaskEntry

VERSION_FILE = "environment.json"
"""What the stage writes beside a harness's results: `{"harness": name, "version": version, ...}`, asked of its Python.
No harness but lmms-eval writes its own version.
"""


@dataclass(frozen=True)
class Place:
    """Where one run of a harness reads and writes, and on what it runs.

    model: Hugging Face folder; mirror: folder of an EvalSuite; data: what `prepare` made of it; output: result files.
    """

    python: str
    model: Path
    mirror: Path
    data: Path
    output: Path
    gpus: int = 0
    batch_size: int = 16
    max_length: int = 4096
    vllm: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a harness says of one task. Values are fractions, 0 to 1, as the report has them."""

    metrics: Mapping[str, tuple[float, float | None]]
    """{metric: (value, standard error)}; the harness's own headline first."""
    n: int
    data_set: str
    split: str
    num_fewshot: int | None = None
    """As the harness recorded it; None: it does not say."""
    version: str = ""
    data_config: str | None = None
    generation: Mapping[str, Any] | None = None
    n_total: int | None = None
    """Documents in the split, where the harness says so."""
    notes: tuple[str, ...] = ()
    """What keeps it from being compared, beside what the stage sees by itself."""
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class DataNeed:
    """A data set that a task reads. ids: the hub's names of it, old and new; required: columns that must be there."""

    ids: tuple[str, ...]
    split: str
    config: str | None = None
    required: tuple[str, ...] = ()
    train: bool = False
    """Whether its examples come from split `train`."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError naming the file when it is not there, cut in half, or no object."""
    try:
        value = parsed_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path.name} is not there: the harness did not finish, or is of another version") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path.name} is no whole JSON file ({error}): run the harness again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name} holds a {type(value).__name__}, not a JSON object: it is no result of a harness")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises InputError naming the file and the line."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path.name} is not there: the harness did not finish, or is of another version") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} cannot be read ({error}): run the harness again") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = parsed_json(line)
        except ValueError as error:
            raise InputError(f"{path.name}, line {number} is no whole JSON ({error}): run the harness again") from error
        if not isinstance(row, dict):
            raise InputError(f"{path.name}, line {number} is no JSON object: it is no result of a harness")
        rows.append(row)
    return rows


def value(row: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """row[key] of the given kind. Raises InputError saying that the file has another form."""
    given = row.get(key)
    wrong_bool = isinstance(given, bool) and kind not in (bool, object)
    if not isinstance(given, kind) or wrong_bool:
        raise InputError(f"{where} has no usable '{key}': it was written by another version of the harness")
    return given


def fraction(row: Mapping[str, Any], key: str, where: str, scale: float = 1.0) -> float:
    """A finite score between 0 and `scale`, as a fraction. Raises InputError."""
    number = float(value(row, key, (int, float), where)) / scale
    if not math.isfinite(number) or not -1e-9 <= number <= 1 + 1e-9:
        raise InputError(f"{where}: '{key}' is {row[key]}, no score from 0 to {scale:g}")
    return min(max(number, 0.0), 1.0)


def standard_error(scores: Iterable[float]) -> float | None:
    """Of the mean of one score a document, sample variance; None for fewer than two."""
    values = list(scores)
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def write_version(folder: Path, harness: str, version: str, **more: Any) -> None:
    """Write down which version ran."""
    text = json.dumps({"harness": harness, "version": version, **more}, sort_keys=True)
    (folder / VERSION_FILE).write_text(text + "\n", encoding="utf-8")


def version_of(folder: Path, harness: str, declared: str | None) -> str:
    """The version that made the results of a folder. Raises InputError when it is another harness's, or not the one
    that the suite declares.
    """
    row = read_json(folder / VERSION_FILE)
    name, version = value(row, "harness", str, VERSION_FILE), value(row, "version", str, VERSION_FILE)
    if name != harness:
        raise InputError(f"{VERSION_FILE}: these are results of {name}, not of {harness}")
    if declared is not None and version != declared:
        raise InputError(
            f"{VERSION_FILE}: {harness} {version} made these results, the suite declares {declared}: run that version,"
            " or change the suite's harness_version"
        )
    return version


def missing(suite: Suite, entry: TaskEntry, where: str, there: Iterable[str]) -> InputError:
    """The error of a result file without one of the suite's tasks."""
    names = ", ".join(sorted(there)) or "none"
    return InputError(
        f"{where} has no result of task '{entry.task}' of suite {suite.name}; it has {names}: run it again"
    )


def check_shots(entry: TaskEntry, shots: int | None, where: str) -> None:
    """Raises InputError when a result was made with other shots than the suite says."""
    if shots is not None and shots != entry.num_fewshot:
        raise InputError(
            f"{where}: task '{entry.task}' was asked with {shots} shots, the suite says"
            f" {entry.num_fewshot}: run it again"
        )
