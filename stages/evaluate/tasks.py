"""lm-evaluation-harness's task definitions, bound to a mirror: what a suite's entry changes, and nothing else.

A task, group or tag is used as the harness defines it. Set are `dataset_path` (the mirror), the shots, and what an
entry says of generation. No program is ever run: where a definition's module would run one while it is imported, or a
metric later, it finds nothing that runs it.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import os
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, cast

import lm_eval.tasks
from lm_eval.api.group import Group
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager

from stages.core.errors import ConfigError, InputError
from stages.evaluate.mirrors import Found, Mirrors
from stages.lib.evaluation.suite_file import TaskEntry
from stages.lib.evaluation.task_tree import Branch, grow
from stages.lib.evaluation.tasks import grading

FOLDERS = (
    *("arc", "hellaswag", "piqa", "winogrande", "mmlu/default", "gsm8k", "minerva_math", "hendrycks_math"),
    *("bbh/cot_fewshot", "truthfulqa", "humaneval", "benchmarks"),
)
"""Where the tasks of the shipped suites are defined. Reading all 13,000 definitions takes 12 CPU seconds more."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The harness's names of the longest answer."""
OURS = Path(grading.__file__).parent
"""Where this project's own tasks are; the module is what their files call."""
KEEP_ALL = [{"name": "none", "filter": [{"function": "custom", "filter_fn": lambda answers, docs: answers}]}]
"""A filter that keeps every answer, where the harness would take the first."""


@dataclass(frozen=True)
class Bound:
    """An entry of a suite as the harness runs it. data: where each of its tasks reads; absent: tasks of its group whose
    data no mirror holds.
    """

    name: str
    loaded: dict[str, Any]
    data: Mapping[str, Found]
    absent: tuple[str, ...]

    @property
    def tasks(self) -> dict[str, Any]:
        """The harness's task objects by name."""
        return self.loaded["tasks"]


def version() -> str:
    """The harness's version."""
    return package_version("lm_eval")


class TaskIndex:
    """The harness's definitions and this project's by name. Those outside FOLDERS are read when one is asked for."""

    def __init__(self) -> None:
        root = Path(lm_eval.tasks.__file__).parent
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        paths = [str(root / folder) for folder in FOLDERS] + [str(OURS)]
        self.manager = TaskManager(include_defaults=False, include_path=list(paths))
        self._all: TaskManager | None = None

    def everything(self) -> TaskManager:
        """Every definition that the harness ships, and this project's."""
        if self._all is None:
            self._all = TaskManager(include_path=[str(OURS)])
        return self._all

    def manager_for(self, name: str) -> TaskManager:
        """The manager that knows a name. A tag may have members anywhere: only all definitions know them."""
        entry = self.manager.task_index.get(name)
        return self.manager if entry is not None and entry.kind.name != "TAG" else self.everything()

    def tree(self, name: str) -> Branch:
        """What a name stands for. Raises ConfigError with the nearest name."""
        entries = self.manager_for(name).task_index
        if name not in entries:
            close = difflib.get_close_matches(name, entries, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ConfigError(f"lm-evaluation-harness {version()} has no task '{name}'{hint}")
        return grow(name, entries)


def bind(index: TaskIndex, entry: TaskEntry, mirrors: Mirrors, seed: int) -> Bound:
    """The harness's tasks of an entry, reading the mirrors.

    Raises ConfigError for a task that cannot be asked as the entry says, InputError for data that no mirror holds.
    """
    tree = index.tree(entry.task)
    data: dict[str, Found] = {}
    absent = []
    for leaf in tree.leaves():
        held = mirrors.find(*_source(leaf))
        if held is None:
            absent.append(leaf.name)
        else:
            data[leaf.name] = held
    if not data or (absent and tree.kind == "task"):
        id, config = _source(next(tree.leaves()))
        raise InputError(
            f"task {entry.task} needs data set {id}, configuration {config or 'default'}, which no suite holds; they"
            f" have {', '.join(mirrors.names)}"
        )
    manager = index.manager_for(entry.task)
    with _no_programs():
        built = _build(tree, entry, data, manager)
    groups = [built, *built.get_all_groups()] if isinstance(built, Group) else []
    tasks = {task.task_name: task for task in (built.get_all_tasks() if isinstance(built, Group) else [built])}
    for task in tasks.values():
        task.set_fewshot_seed(seed=seed)
    loaded = {
        "tasks": tasks,
        "groups": {group.name: group for group in groups},
        "group_map": {group.name: group.child_names for group in groups},
    }
    return Bound(entry.task, loaded, {name: data[name] for name in tasks}, tuple(absent))


def _source(leaf: Branch) -> tuple[str, str | None]:
    """The hub's name and the configuration of a task's data set."""
    if "class" in leaf.config or not isinstance(leaf.settings.get("dataset_path"), str):
        raise ConfigError(f"task '{leaf.name}' does not say which data set it reads: it cannot be asked from a mirror")
    return leaf.settings["dataset_path"], leaf.settings.get("dataset_name")


def _build(branch: Branch, entry: TaskEntry, data: Mapping[str, Found], manager: TaskManager) -> Any:
    """The harness's object of a branch: a task, or a group of those members whose data there is. The harness gives a
    tag no score; here it is a group whose metrics are means over documents.
    """
    if branch.kind == "task":
        definition = manager.task_index[branch.name]
        changes = {**branch.changes, **changed(branch, entry, data[branch.name]), "task": branch.name}
        return manager._factory.build(definition, overrides=changes, registry=manager.task_index)
    members = [
        _build(member, entry, data, manager)
        for member in branch.members
        if any(leaf.name in data for leaf in member.leaves())
    ]
    group = Group.from_config(_group_config(branch, members))
    for member in members:
        group.add(member)
    return group


def _group_config(branch: Branch, members: list[Any]) -> GroupConfig:
    asked = branch.config.get("aggregate_metric_list")
    if not asked:
        tasks = [task for m in members for task in (m.get_all_tasks() if isinstance(m, Group) else [m])]
        metrics = dict.fromkeys(metric for task in tasks for metric in task.aggregation() or ())
        asked = [{"metric": metric, "weight_by_size": True} for metric in metrics]
    return GroupConfig(
        group=branch.name, aggregate_metric_list=cast(Any, asked), metadata=branch.config.get("metadata")
    )


def changed(leaf: Branch, entry: TaskEntry, source: Found) -> dict[str, Any]:
    """What an entry changes in a task's definition. Raises ConfigError for what the task cannot do."""
    settings = leaf.settings
    changes: dict[str, Any] = {"dataset_path": str(source.folder), "num_fewshot": entry.num_fewshot}
    programs = bool(settings.get("unsafe_code"))
    if programs != entry.execute:
        what = "are programs: set execute = true" if programs else "are no programs: set execute = false"
        raise ConfigError(f"task {entry.task}: its answers {what}")
    asked = {key: value for key, value in _generation(entry).items() if value is not None}
    if settings.get("output_type", "generate_until") != "generate_until":
        if asked or entry.repeats > 1:
            raise ConfigError(
                f"task {entry.task} compares log-likelihoods and writes nothing: repeats, temperature, top_p and"
                " max_new_tokens do not apply to it"
            )
        return changes
    if asked:
        of_task = dict(settings.get("generation_kwargs") or {"do_sample": False, "temperature": 0.0})
        of_task = {key: value for key, value in of_task.items() if key not in LENGTHS or "max_gen_toks" not in asked}
        changes["generation_kwargs"] = of_task | asked
    if entry.repeats > 1 or "repeats" not in settings or entry.execute:
        changes["repeats"] = entry.repeats
    if entry.execute:
        changes |= {
            "unsafe_code": False,
            "metric_list": [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}],
        }
        if not settings.get("filter_list"):
            changes["filter_list"] = KEEP_ALL
    return changes


def _generation(entry: TaskEntry) -> dict[str, Any]:
    drawn = None if entry.temperature is None else entry.temperature > 0
    return {
        "max_gen_toks": entry.max_new_tokens,
        "temperature": entry.temperature,
        "top_p": entry.top_p if drawn is not False else None,
        "do_sample": drawn if drawn is not None else (True if entry.top_p is not None else None),
    }


class _NoRunner:
    """Stands for the library that runs programs. A module that tries it while it is imported finds it well."""

    def __init__(self) -> None:
        self.tried = False

    def compute(self, **given: Any) -> Any:
        """Nothing is run."""
        if self.tried:
            raise ConfigError("a task's metric runs programs, which an evaluation never does: leave the task out")
        self.tried = True
        return {}, {}


def _load_metric(name: str, *rest: Any, **more: Any) -> Any:
    """`evaluate.load`, but for what runs programs."""
    if name == "code_eval":
        return _NoRunner()
    held = sys.modules.pop("evaluate", None)
    try:
        return importlib.import_module("evaluate").load(name, *rest, **more)
    finally:
        if held is not None:
            sys.modules["evaluate"] = held


def _modules_of_tasks() -> dict[str, types.ModuleType]:
    """The modules that lm_eval's reader of tasks keeps: it marks them with their file's time."""
    return {name: module for name, module in sys.modules.items() if "__mtime__" in getattr(module, "__dict__", {})}


@contextlib.contextmanager
def _no_programs() -> Iterator[None]:
    """While this lasts, whoever imports `evaluate` gets a library that runs no program. The real one (9 CPU seconds) is
    imported when another metric of it is asked for. A task's module that was read with the real one is read anew.
    """
    os.environ.pop("HF_ALLOW_CODE_EVAL", None)
    for name, module in _modules_of_tasks().items():
        if not hasattr(module, "read_without_programs"):
            del sys.modules[name]
    real, stand_in = sys.modules.get("evaluate"), types.ModuleType("evaluate")
    vars(stand_in)["load"] = _load_metric
    sys.modules["evaluate"] = stand_in
    try:
        yield
    finally:
        for module in _modules_of_tasks().values():
            vars(module)["read_without_programs"] = True
        if real is None:
            sys.modules.pop("evaluate", None)
        else:
            sys.modules["evaluate"] = real
