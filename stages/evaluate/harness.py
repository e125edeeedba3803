"""lm-evaluation-harness in this process: its task index, the model, one task scored. The only module that imports it."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, cast

import lm_eval
import lm_eval.tasks
import numpy
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from stages.core.contracts import ConfigError, InputError
from stages.evaluate.spec import EvaluateConfig, Task

FOLDERS = ("arc", "hellaswag", "piqa", "winogrande", "mmlu/default")
"""Where the paper's tasks are defined. Reading all of the harness's 13,000 definitions takes 12 CPU seconds more."""
DTYPE = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Plan:
    """One task of a suite: which of the harness's tasks it is made of, and the mirror to read."""

    suite: str
    task: Task
    members: tuple[str, ...]
    mirror: Path


@dataclass(frozen=True)
class Scored:
    """What the harness said of one plan. metrics: {name: (value, standard error)}."""

    metrics: dict[str, tuple[float, float | None]]
    n: int
    n_total: int
    split: str
    data_set: tuple[str, str | None]
    version: str
    truncated: int
    samples: list[dict[str, Any]]


class LM(cast(Any, HFLM)):  # its registry's decorator hides the class from a type checker
    """The harness's model, which says it when an answer does not fit where the harness would fail an assertion."""

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> Any:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise ConfigError(
                f"a context of {self.max_length} tokens cannot hold an answer of {longest}: raise max_length, or give a model with a longer one"
            )
        return super()._loglikelihood_tokens(requests, *args, **kwargs)


@dataclass
class Loaded:
    """The model inside the harness."""

    lm: LM
    parameters: int


def version() -> str:
    """The harness's version."""
    return package_version("lm_eval")


class TaskIndex:
    """The harness's task definitions, by name. Those outside the paper's folders are read only when one is asked for."""

    def __init__(self) -> None:
        root = Path(lm_eval.tasks.__file__).parent
        logging.getLogger("lm_eval").setLevel(logging.WARNING)
        self.manager = TaskManager(include_defaults=False, include_path=[str(root / f) for f in FOLDERS])
        self._all: TaskManager | None = None

    @property
    def names(self) -> _Names:
        """The names of all tasks."""
        return _Names(self)

    def everything(self) -> TaskManager:
        """Every definition that the harness ships."""
        if self._all is None:
            self._all = TaskManager()
        return self._all

    def manager_for(self, task: str) -> TaskManager:
        """The manager that knows a task."""
        return self.manager if task in self.manager.task_index else self.everything()

    def data_set(self, task: str) -> tuple[str, str | None]:
        """The hub name and configuration of a task's data set."""
        loaded = self.manager_for(task)._entry(task)
        config = (loaded.cfg if loaded else None) or {}
        if not config.get("dataset_path"):
            raise ConfigError(f"task '{task}' is no single task with a data set: name its members")
        return str(config["dataset_path"]), config.get("dataset_name")


class _Names:
    """Membership first in the paper's folders, then in all; iterates over all (for the nearest name)."""

    def __init__(self, index: TaskIndex) -> None:
        self._index = index

    def __contains__(self, name: str) -> bool:
        return name in self._index.manager.task_index or name in self._index.everything().task_index

    def __iter__(self) -> Any:
        return iter(self._index.everything().all_subtasks)


def load(folder: Path, config: EvaluateConfig) -> Loaded:
    """Put a model folder into the harness. Raises ConfigError or InputError."""
    gpu = torch.cuda.is_available()
    if config.device == "cuda" and not gpu:
        raise ConfigError("device = 'cuda', but this machine has no GPU: set 'auto' or 'cpu'")
    torch.set_num_threads(config.threads)
    try:
        lm = LM(
            pretrained=str(folder),
            device="cuda" if gpu and config.device != "cpu" else "cpu",
            dtype=DTYPE[config.precision],
            batch_size=config.batch_size,
            max_length=config.max_length,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the model folder cannot be loaded: {str(error).splitlines()[0]}") from error
    return Loaded(lm, sum(p.numel() for p in lm.model.parameters()))


def score(model: Loaded, index: TaskIndex, plan: Plan, config: EvaluateConfig) -> Scored:
    """Score one plan."""
    members = [
        {"task": name, "dataset_path": str(plan.mirror / index.data_set(name)[0]), "num_fewshot": plan.task.num_fewshot}
        for name in plan.members
    ]
    loaded = index.manager_for(plan.members[0]).load([{"group": f"{plan.suite}_{plan.task.task}_group", "task": members}])
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=config.seed)
    random.seed(config.seed)  # of the bootstrap
    numpy.random.seed(config.seed)
    # `simple_evaluate` does the same, and then runs `pip list` and a dozen other programs to describe the machine
    found = cast(Any, lm_eval).evaluate(
        lm=model.lm, task_dict=loaded, limit=plan.task.limit, bootstrap_iters=config.bootstrap_iters, log_samples=True
    )
    counts = [found["n-samples"][name] for name in plan.members]
    samples = [_sample(name, row) for name in plan.members for row in found["samples"][name]]
    first = found["configs"][plan.members[0]]
    return Scored(
        metrics=_metrics(found["results"], plan.members, [c["effective"] for c in counts]),
        n=sum(c["effective"] for c in counts),
        n_total=sum(c["original"] for c in counts),
        split=str(first.get("test_split") or first.get("validation_split")),
        data_set=index.data_set(plan.members[0]),
        version=str(found["versions"].get(plan.members[0], "")),
        truncated=_truncated(model.lm, found["samples"], plan.members),
        samples=samples,
    )


def _metrics(results: dict[str, Any], members: tuple[str, ...], sizes: list[int]) -> dict[str, tuple[float, float | None]]:
    """Means over the members' documents; the standard error is that of the pooled documents."""
    out: dict[str, tuple[float, float | None]] = {}
    names = [key.removesuffix(",none") for key in results[members[0]] if key.endswith(",none") and "_stderr" not in key]
    total = sum(sizes)
    for name in names:
        values = [float(results[m][f"{name},none"]) for m in members]
        errors = [results[m].get(f"{name}_stderr,none") for m in members]
        known = [float(e) for e in errors if isinstance(e, int | float) and math.isfinite(e)]
        error = math.sqrt(sum((n * e) ** 2 for n, e in zip(sizes, known, strict=True))) / total if len(known) == len(members) else None
        out[name] = (sum(n * v for n, v in zip(sizes, values, strict=True)) / total, error)
    return out


def _sample(task: str, row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one document: the question, what the model was given, how it scored each answer."""
    answers = [[str(part) for part in request] for request in _requests(row)]
    scores = [[float(r[0]), bool(r[1])] for r in row["filtered_resps"]]
    kept = {key: row[key] for key in ("acc", "acc_norm") if key in row}
    return {"task": task, "doc_id": row["doc_id"], "doc": row["doc"], "target": row["target"], "requests": answers, "scores": scores, **kept}


def _requests(row: dict[str, Any]) -> list[Any]:
    """The (context, continuation) pairs of a logged sample, whichever way the harness lays them out."""
    arguments = row["arguments"]
    if isinstance(arguments, dict):
        return [[value["arg_0"], value["arg_1"]] for _, value in sorted(arguments.items(), key=lambda item: int(item[0].rpartition("_")[2]))]
    return [list(pair) for pair in arguments]


def _truncated(lm: LM, samples: dict[str, Any], members: tuple[str, ...]) -> int:
    """Requests that do not fit: the harness then drops tokens from their beginning."""
    count = 0
    for name in members:
        for row in samples[name]:
            for context, continuation in _requests(row):
                count += len(lm.tok_encode(context + continuation)) > lm.max_length + 1
    return count
