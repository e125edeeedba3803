"""OpenCompass 0.5.4 (PyPI), which the paper names beside lm-evaluation-harness (7.1) without a table of its own.

A task is the name of one of its own configurations (`gsm8k_gen`, `piqa_ppl`): its file name says the data set, how it
is asked (`gen`: written, `ppl`: the likelier text) and, at its end, a digest of the prompt, which the summary prints as
the version. What its source says, and this module is built around:

- `results/<model>/<abbr>.json` has percentages under metrics' names, `details` with one entry a document when
  `--dump-eval-details` is on (the default), or `error`.
- `<abbr>` is the data set's, not the configuration's: `piqa_ppl` writes `piqa.json`.
- It looks for data below COMPASS_DATA_CACHE and downloads what is not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from csv import DictReader
from pathlib import Path
from typing import Any

from stages.core.errors import ConfigError, InputError
from stages.lib.evaluation.harnesses.outcomes import (
    DataNeed,
    Outcome,
    Place,
    fraction,
    missing,
    read_json,
    standard_error,
    version_of,
)
from stages.lib.evaluation.suite_file import Suite, TaskEntry

NAME = "opencompass"
PACKAGE, VERSION = "opencompass", "0.5.4"
MODEL = "model"
"""Name of the folder that it is given the model in; its results lie below `<name>_hf`."""
MODES = ("gen", "ppl", "ll")
NO_METRICS = frozenset({"bp", "sys_len", "ref_len", "type"})
"""Numbers that its summary does not take for metrics (summarizers/default.py)."""
HEADLINES = ("score", "auc_score", "accuracy", "humaneval_pass@1", "exact_match")
"""The metrics that its summary prefers, in order, of those that are fractions."""
TASK = re.compile(
    r"(?P<data>.+?)_(?:\d+shot_)?(?:few_shot_|cot_|clean_)?(?P<mode>gen|ppl|ll)(?:_(?P<digest>[0-9a-f]{6}))?$"
)
DATA: Mapping[str, DataNeed] = {
    "gsm8k": DataNeed(("openai/gsm8k", "gsm8k"), "test", "main", ("question", "answer"), train=True),
    "piqa": DataNeed(("baber/piqa", "ybisk/piqa"), "validation", None, ("goal", "sol1", "sol2", "label"), train=True),
    "winogrande": DataNeed(
        ("allenai/winogrande", "winogrande"),
        "validation",
        "winogrande_xl",
        ("sentence", "option1", "option2", "answer"),
    ),
}
"""Data sets whose mirror this module can write in its form, by abbreviation."""


def data_name(entry: TaskEntry) -> str:
    """The data set's abbreviation. Raises ConfigError for a name that does not say how it is asked."""
    match = TASK.fullmatch(entry.task)
    if not match:
        raise ConfigError(
            f"task '{entry.task}' is no configuration of {NAME}: its names end in {', '.join(MODES)},"
            " or in a digest after that"
        )
    return match["data"]


def commands(suite: Suite, place: Place) -> dict[str, list[str]]:
    """One run of all tasks, under the suite's name; a table of settings that differ between tasks is refused."""
    names = [data_name(entry) for entry in suite.tasks]
    if again := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"suite {suite.name} asks {again[0]} twice: {NAME} keeps one result of a data set; make two suites"
        )
    for key in ("chat_template", "max_new_tokens", "temperature", "top_p"):
        if len({getattr(entry, key) for entry in suite.tasks}) > 1:
            raise ConfigError(f"suite {suite.name}: {NAME} asks all tasks of a run with one {key}; make two suites")
    for entry in suite.tasks:
        if entry.limit or entry.repeats > 1 or entry.system:
            raise ConfigError(
                f"task '{entry.task}': {NAME} has no option for limit, repeats and system; leave them out"
            )
    first = suite.tasks[0]
    words = [place.python, "-m", "opencompass.cli.main", "--datasets", *(entry.task for entry in suite.tasks)]
    options: dict[str, Any] = {
        "hf-type": "chat" if first.chat_template else "base",
        "hf-path": place.model,
        "work-dir": place.output,
        "max-seq-len": place.max_length,
        "max-out-len": first.max_new_tokens or 512,
        "batch-size": place.batch_size,
        "hf-num-gpus": place.gpus,
    }
    words += [word for name, given in options.items() for word in (f"--{name}", str(given))]
    drawn = {"temperature": first.temperature, "top_p": first.top_p}
    if first.temperature:
        words += ["--generation-kwargs", "do_sample=True", *(f"{k}={v}" for k, v in drawn.items() if v is not None)]
    words += ["-a", "vllm"] if place.vllm else []
    return {suite.name: [*words, "--debug"]}  # debug: in this process, so that a failure is its own


def environment(place: Place) -> dict[str, str]:
    """Its data folder, and no downloads."""
    return {"COMPASS_DATA_CACHE": str(place.data), "TRANSFORMERS_OFFLINE": "1"}


def prepare(suite: Suite, rows: Mapping[str, Mapping[str, list[dict[str, Any]]]], place: Place) -> None:
    """Write the data sets in its form. rows: {task: {split: rows}}. Raises ConfigError for one that is not known."""
    for entry in suite.tasks:
        name = data_name(entry)
        folder = place.data / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, given in rows[entry.task].items():
            kept = [{key: row[key] for key in DATA[name].required if key != "label"} for row in given]
            stem = split if name == "gsm8k" or split == "train" else "dev"
            if name == "piqa":
                kept = [{"id": str(number), **row} for number, row in enumerate(kept)]
                _lines(folder / f"{stem}-labels.lst", (str(row["label"]) for row in given))
            _lines(folder / f"{stem}.jsonl", map(json.dumps, kept))


def _lines(path: Path, lines: Any) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read(folder: Path, suite: Suite) -> dict[str, Outcome]:
    """What it said of each task of a suite. Raises InputError naming the file."""
    version_of(folder, NAME, suite.harness_version)
    runs = sorted(path for path in folder.glob("*") if (path / "results").is_dir())
    if len(runs) != 1:
        raise InputError(
            f"{folder.name}/ has {len(runs)} runs with results, one was made: run it again in an empty folder"
        )
    prompts = _prompts(runs[0])
    return {entry.task: _outcome(runs[0], suite, entry, prompts) for entry in suite.tasks}


def _prompts(run: Path) -> dict[str, str]:
    """{data set: digest of its prompt}, from the summary."""
    paths = sorted(run.glob("summary/*.csv"))
    if not paths:
        raise InputError(f"{run.name}/summary has no table: {NAME} did not finish, run it again")
    with open(paths[-1], encoding="utf-8", newline="") as stream:
        table = [row for row in DictReader(stream) if row.get("dataset")]
    if any(not row.get("version") for row in table):
        raise InputError(
            f"{paths[-1].name} has no column 'version' in every row: it was cut, or another version wrote it"
        )
    return {row["dataset"]: row["version"] for row in table}


def _outcome(run: Path, suite: Suite, entry: TaskEntry, prompts: Mapping[str, str]) -> Outcome:
    name = data_name(entry)
    paths = sorted(run.glob(f"results/*/{name}.json"))
    if not paths:
        raise missing(suite, entry, f"{run.name}/results", [path.stem for path in run.glob("results/*/*.json")])
    where, result = paths[0].name, read_json(paths[0])
    if "error" in result:
        raise InputError(f"{where}: {NAME} could not score task '{entry.task}': {str(result['error'])[:200]}")
    numbers = [
        k for k, v in result.items() if k not in NO_METRICS and isinstance(v, int | float) and not isinstance(v, bool)
    ]
    if not numbers:
        raise InputError(f"{where} has no number that is a metric: it was written by another version of {NAME}")
    numbers.sort(key=lambda k: HEADLINES.index(k) if k in HEADLINES else len(HEADLINES))
    samples = _samples(result, where)
    version = prompts.get(name, "")
    if entry.version is not None and entry.version != version:
        raise InputError(
            f"{where}: its prompt is {version or 'not told'}, the suite says {entry.version}: run it again"
        )
    right = [float(s["correct"]) for s in samples]
    error = standard_error(right)
    metrics: dict[str, tuple[float, float | None]] = {}
    for key in numbers:
        score = fraction(result, key, where, scale=100)
        exact = right and abs(score - sum(right) / len(right)) < 1e-6
        metrics[key] = (score, error if exact else None)
    need = DATA.get(name)
    return Outcome(
        metrics=metrics,
        n=len(samples),
        data_set=need.ids[0] if need else name,
        split=need.split if need else "test",
        data_config=need.config if need else None,
        version=version,
        samples=samples,
    )


def _samples(result: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """One entry a document: a list, or a table by number beside words. Raises InputError without them, since n
    would be unknown.
    """
    details = result.get("details")
    rows = list(details.values()) if isinstance(details, dict) else details
    rows = [r for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []
    if not rows:
        raise InputError(f"{where} has no 'details' of its documents: run {NAME} with --dump-eval-details True")
    return [{**r, "correct": _right(r.get("correct"), where)} for r in rows]


def _right(given: Any, where: str) -> float:
    answers = given if isinstance(given, list) else [given]
    if not answers or not all(isinstance(a, bool | int | float) for a in answers):
        raise InputError(f"{where}: a document's 'correct' is {given!r}: it was written by another version of {NAME}")
    return sum(map(float, answers)) / len(answers)
