"""lmms-eval 0.7.3 (PyPI) for vision-language models: four of Table 8's seven benchmarks
(it has no OCID-Ref, VSR, TallyQA).

Its tasks ask and score otherwise than Prismatic's suite, which made Table 8: no score of it is comparable to the paper.
What its source says, and this module is built around:

- `<date>_results.json`, in the output folder or one named after the model: `results` by task and `metric,filter`,
  `n-samples`, `n-shot`, `configs`; installed from a wheel it calls its own version `unknown@unknown`.
- `<date>_samples_<task>.jsonl`: one row a document.
- `<metric>_stderr_clt` is the standard error of the documents' scores even for a precision or an F1, whose it is not.
- Many tasks name a data set of the hub: a definition beside its own, which includes it, names a folder instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.lib.evaluation.harnesses.outcomes import (
    DataNeed,
    Outcome,
    Place,
    check_shots,
    fraction,
    missing,
    read_json,
    read_lines,
    value,
    version_of,
)
from stages.lib.evaluation.suite_file import Suite, TaskEntry

NAME = "lmms-eval"
PACKAGE, VERSION = "lmms_eval", "0.7.3"
DATA: Mapping[str, DataNeed] = {
    "pope": DataNeed(("lmms-lab-encoder/POPE", "lmms-lab/POPE"), "test"),
    "gqa": DataNeed(("lmms-lab-encoder/GQA", "lmms-lab/GQA"), "testdev", "testdev_balanced_instructions"),
    "vizwiz_vqa_val": DataNeed(("lmms-lab-encoder/VizWiz-VQA", "lmms-lab/VizWiz-VQA"), "val"),
    "refcoco+_bbox_rec_val": DataNeed(("lmms-lab-encoder/RefCOCOplus", "lmms-lab/RefCOCOplus"), "val"),
}
SOURCES: Mapping[str, str] = {
    "pope": "pope/pope.yaml",
    "vizwiz_vqa_val": "vizwiz_vqa/vizwiz_vqa_val.yaml",
    "refcoco+_bbox_rec_val": "refcoco+/refcoco+_bbox_rec_val.yaml",
}
"""Its definitions that a folder can be given to; GQA's function names the hub itself."""
LOCAL = "_local"
"""Behind a task's name: its own definition with a folder for data."""


def local_name(task: str) -> str:
    """The name under which a task runs."""
    return f"{task}{LOCAL}" if task in SOURCES else task


def commands(suite: Suite, place: Place, model: str = "llava_hf") -> dict[str, list[str]]:
    """{task: words} of one run a task. model: the class of its own that loads the folder."""
    return {entry.task: _command(entry, place, model) for entry in suite.tasks}


def _command(entry: TaskEntry, place: Place, model: str) -> list[str]:
    options: dict[str, Any] = {
        "model": model,
        "model_args": f"pretrained={place.model}",
        "tasks": local_name(entry.task),
        "include_path": place.data,
        "output_path": place.output / entry.task,
        "batch_size": place.batch_size,
        "device": "cuda" if place.gpus else "cpu",
        "num_fewshot": entry.num_fewshot,
        "seed": ",".join([str(place.seed)] * 4),
    }
    words = [place.python, "-m", "lmms_eval"]
    words += [word for name, given in options.items() for word in (f"--{name}", str(given))]
    words += ["--limit", str(entry.limit)] if entry.limit else []
    words += ["--gen_kwargs", f"max_new_tokens={entry.max_new_tokens}"] if entry.max_new_tokens else []
    words += ["--apply_chat_template"] if entry.chat_template else []
    return [*words, "--log_samples"]


def environment(place: Place) -> dict[str, str]:
    """GPUs that it may use."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(place.gpus)))}


def definition(task: str, package: Path, mirror: Path) -> str:
    """YAML of a task that reads a folder. package: where lmms_eval is installed. Raises InputError where the folder is
    not there.
    """
    need = DATA[task]
    folder = next((mirror / each for each in need.ids if (mirror / each).is_dir()), None)
    if folder is None:
        raise InputError(f"task '{task}' reads {' or '.join(need.ids)}, which the suite does not hold")
    source = package / "tasks" / SOURCES[task]
    lines = [
        f"include: {source}",
        f"task: {local_name(task)}",
        f"dataset_path: {folder}",
        "dataset_kwargs:",
        "  token: False",
    ]
    return "\n".join(lines) + "\n"


def read(folder: Path, suite: Suite) -> dict[str, Outcome]:
    """What it said of each task of a suite. Raises InputError naming the file."""
    version_of(folder, NAME, suite.harness_version)
    return {entry.task: _outcome(folder / entry.task, suite, entry) for entry in suite.tasks}


def _outcome(folder: Path, suite: Suite, entry: TaskEntry) -> Outcome:
    paths = sorted(folder.rglob("*_results.json"))
    if not paths:
        there = sorted({p.relative_to(folder.parent).parts[0] for p in folder.parent.rglob("*_results.json")})
        raise missing(suite, entry, folder.parent.name + "/", there)
    if len(paths) != 1:
        raise InputError(f"{folder.name}/ has {len(paths)} files *_results.json, of more than one run: empty it")
    path, name = paths[0], local_name(entry.task)
    whole = read_json(path)
    results = value(whole, "results", dict, path.name)
    if name not in results:
        raise missing(suite, entry, path.name, results)
    scores = value(results, name, dict, path.name)
    counts = value(value(whole, "n-samples", dict, path.name), name, dict, path.name)
    shots = value(value(whole, "n-shot", dict, path.name), name, int, path.name)
    check_shots(entry, shots, path.name)
    metrics: dict[str, tuple[float, float | None]] = {}
    for key in (k for k, v in scores.items() if "," in k and "_stderr" not in k and isinstance(v, int | float)):
        metric, _, chosen = key.partition(",")
        error = scores.get(f"{metric}_stderr,{chosen}")
        metrics[metric] = (fraction(scores, key, path.name), float(error) if isinstance(error, int | float) else None)
    if not metrics:
        raise InputError(
            f"{path.name} has no number for task '{entry.task}': it was written by another version of {NAME}"
        )
    n = value(counts, "effective", int, path.name)
    stem = path.name.removesuffix("_results.json")
    samples = read_lines(path.with_name(f"{stem}_samples_{name}.jsonl"))
    if len(samples) != n:
        raise InputError(
            f"{path.name} counts {n} documents, the samples of '{entry.task}' are {len(samples)}: run it again"
        )
    config = value(value(whole, "configs", dict, path.name), name, dict, path.name)
    need = DATA.get(entry.task)
    return Outcome(
        metrics=metrics,
        n=n,
        n_total=value(counts, "original", int, path.name),
        data_set=need.ids[0] if need else str(config.get("dataset_path")),
        data_config=need.config if need else config.get("dataset_name"),
        split=str(config.get("test_split") or config.get("validation_split")),
        num_fewshot=shots,
        version=_task_version(config),
        generation=config.get("generation_kwargs"),
        notes=("its tasks ask and score otherwise than Prismatic's suite",),
        samples=samples,
    )


def _task_version(config: Mapping[str, Any]) -> str:
    """Its metadata is a table, or a list of one."""
    given = config.get("metadata")
    first = given[0] if isinstance(given, list) and given else given
    return str(first.get("version", "")) if isinstance(first, dict) else ""
