"""lm-evaluation-harness in this process: its task index, the model, one task scored. The only module that
imports it.
"""

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

from stages.core.errors import ConfigError, InputError
from stages.evaluate.spec import EvaluateConfig, Task
from stages.lib.modeling.loading import refuse_incomplete

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
    joined: int
    samples: list[dict[str, Any]]


class _Complete:
    """A class of models that refuses a folder with weights missing, where transformers would draw them by chance."""

    def __init__(self, model_class: Any) -> None:
        self._class = model_class

    def from_pretrained(self, folder: str, **options: Any) -> Any:
        """As the class's own."""
        model, info = self._class.from_pretrained(folder, output_loading_info=True, **options)
        refuse_incomplete(info, "the model folder")
        return model


class LM(cast(Any, HFLM)):  # its registry's decorator hides the class from a type checker
    """The harness's model, which says it when an answer does not fit where the harness would fail an assertion."""

    joined = 0
    """Answers that the vocabulary has no tokens of their own for."""

    def _create_model(self, *args: Any, **options: Any) -> None:
        model_class = self.AUTO_MODEL_CLASS
        self.AUTO_MODEL_CLASS = _Complete(model_class)
        try:
            super()._create_model(*args, **options)
        finally:
            self.AUTO_MODEL_CLASS = model_class

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness's, but where a piece spans the end of the context and the whole answer, which leaves it
        without a token, both are encoded by themselves, as the harness does for encoder-decoder models.
        """
        before, answer = super()._encode_pair(context, continuation)
        if answer:
            return before, answer
        self.joined += 1
        return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> Any:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise ConfigError(
                f"a context of {self.max_length} tokens cannot hold an answer of {longest}: raise max_length, or give a"
                " model with a longer one"
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
    """The harness's task definitions, by name. Those outside the paper's folders are read only when one is
    asked for.
    """

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
    loaded = index.manager_for(plan.members[0]).load(
        [{"group": f"{plan.suite}_{plan.task.task}_group", "task": members}]
    )
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=config.seed)
    random.seed(config.seed)  # of the bootstrap
    numpy.random.seed(config.seed)
    model.lm.joined = 0
    # `simple_evaluate` does the same, and then runs `pip list` and a dozen other programs to describe the machine
    output = cast(Any, lm_eval).evaluate(
        lm=model.lm, task_dict=loaded, limit=plan.task.limit, bootstrap_iters=config.bootstrap_iters, log_samples=True
    )
    counts = [output["n-samples"][name] for name in plan.members]
    samples = [_sample(name, row) for name in plan.members for row in output["samples"][name]]
    first = output["configs"][plan.members[0]]
    return Scored(
        metrics=_metrics(output["results"], plan.members, [c["effective"] for c in counts]),
        n=sum(c["effective"] for c in counts),
        n_total=sum(c["original"] for c in counts),
        split=str(first.get("test_split") or first.get("validation_split")),
        data_set=index.data_set(plan.members[0]),
        version=str(output["versions"].get(plan.members[0], "")),
        truncated=_truncated(model.lm, output["samples"], plan.members),
        joined=model.lm.joined,
        samples=samples,
    )


def _metrics(
    results: dict[str, Any], members: tuple[str, ...], sizes: list[int]
) -> dict[str, tuple[float, float | None]]:
    """Means over the members' documents; the standard error is that of the pooled documents.

    The harness's keys are `metric,filter`; without a filter ("none") the metric's name is enough. Raises ConfigError
    when there is none.
    """
    out: dict[str, tuple[float, float | None]] = {}
    first = results[members[0]]
    keys = [
        key for key, value in first.items() if "," in key and "_stderr," not in key and isinstance(value, int | float)
    ]
    if not keys:
        raise ConfigError(
            f"task '{members[0]}' gives no number that could be reported, only {', '.join(sorted(first))}: leave it out"
        )
    total = sum(sizes)
    for key in keys:
        metric, _, chosen = key.partition(",")
        name = metric if chosen == "none" else key
        values = [float(results[m][key]) for m in members]
        errors = [results[m].get(f"{metric}_stderr,{chosen}") for m in members]
        known = [float(e) for e in errors if isinstance(e, int | float) and math.isfinite(e)]
        error = (
            math.sqrt(sum((n * e) ** 2 for n, e in zip(sizes, known, strict=True))) / total
            if len(known) == len(members)
            else None
        )
        out[name] = (sum(n * v for n, v in zip(sizes, values, strict=True)) / total, error)
    return out


def _sample(task: str, row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one document: the question, what the model was given, how it scored each answer or what
    it wrote.
    """
    answers = [[str(part) for part in request] for request in _requests(row)]
    scores = [_response(response) for response in row["filtered_resps"]]
    kept = {name: row[name] for name in row.get("metrics", ()) if isinstance(row.get(name), int | float)}
    chosen = {"filter": row["filter"]} if row.get("filter", "none") != "none" else {}
    doc = {"doc_id": row["doc_id"], "doc": row["doc"], "target": row["target"]}
    return {"task": task, **doc, "requests": answers, "scores": scores, **chosen, **kept}


def _response(response: Any) -> Any:
    """A response as JSON: (log-likelihood, whether greedy decoding says it), one number, or a text."""
    if isinstance(response, tuple | list) and len(response) == 2 and isinstance(response[0], int | float):
        return [float(response[0]), bool(response[1])]
    return float(response) if isinstance(response, int | float) else str(response)


def _requests(row: dict[str, Any]) -> list[Any]:
    """The (context, continuation) or (context, settings of generation) of a logged sample, whichever way the harness
    lays them out.
    """
    arguments = row["arguments"]
    if isinstance(arguments, dict):
        ordered = sorted(arguments.items(), key=lambda item: int(item[0].rpartition("_")[2]))
        return [[value[name] for name in sorted(value)] for _, value in ordered]
    return [list(request) for request in arguments]


def _truncated(lm: LM, samples: dict[str, Any], members: tuple[str, ...]) -> int:
    """Requests that do not fit: the harness then drops tokens from their beginning."""
    count = 0
    for name in members:
        for row in samples[name]:
            for request in _requests(row):
                count += _tokens(lm, request) > lm.max_length + 1
    return count


def _tokens(lm: LM, request: list[Any]) -> int:
    """Tokens that a request wants to have in view: a text alone, with its answer, or with what may be written
    after it.
    """
    context, rest = request[0], request[1] if len(request) > 1 else ""
    if isinstance(rest, dict):
        return len(lm.tok_encode(context)) + int(rest.get("max_gen_toks", lm.max_gen_toks))
    return len(lm.tok_encode(context + str(rest)))
