"""What lm-evaluation-harness says of a task: its data set, splits, metric and shots. `moxin suite add` starts this.

A request names a `task`; the answer is a JSON list, one entry for each task, or member of a group.
The harness's own index is read, its definitions merged as it merges them; no data set is loaded and no function called.
"""

from __future__ import annotations

import difflib
import functools
import json
import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.core.errors import ConfigError
from stages.core.probing import serve

OURS = Path(__file__).parent / "tasks"
"""Definitions of this project, for what the harness lacks."""
FILE_FORMATS = frozenset({"json", "csv", "text", "parquet", "arrow", "webdataset", "imagefolder"})
"""Names that `datasets` reads files with: no data sets."""
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


_LOCK = threading.Lock()


def index() -> Mapping[str, Any]:
    """The harness's entries by name, read once (12 CPU seconds). Raises ConfigError where it is not installed."""
    with _LOCK:
        return _index()


@functools.cache
def _index() -> Mapping[str, Any]:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness cannot be imported here ({error}): run this where every stage is installed, or"
            " pip install 'moxin[eval]'"
        ) from error
    return TaskManager(include_path=str(OURS) if OURS.is_dir() else None).task_index


def describe(name: str) -> list[dict[str, Any]]:
    """The tasks that a name stands for: itself, or the members of a group or tag. Raises ConfigError."""
    entries = index()
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=3)
        hint = f"; did you mean {' or '.join(repr(other) for other in close)}?" if close else ""
        raise ConfigError(f"lm-evaluation-harness {version('lm_eval')} has no task '{name}'{hint}")
    members = {entry["task"]: entry for entry in _members(name, {}, entries)}
    return list(members.values())


def _members(name: str, changes: Mapping[str, Any], entries: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The tasks of a name. changes: what the groups around it set."""
    if name not in entries:
        raise ConfigError(f"task '{name}' is defined inside a group of lm-evaluation-harness: it cannot be named alone")
    entry = entries[name]
    config = entry.cfg or {}
    if entry.kind.name == "TAG":
        yield from _listed(name, sorted(entry.tags), changes, entries)
    elif entry.kind.name == "GROUP":
        yield from _listed(name, config.get("task"), {**_settings(config), **changes}, entries)
    else:
        yield _described(name, {**config, **changes})


def _listed(group: str, items: Any, changes: Mapping[str, Any], entries: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The tasks of a group's list: names, or tables that change settings or list further ones."""
    for item in items if isinstance(items, list) else [items]:
        inner = item if isinstance(item, Mapping) else {"task": item}
        merged = {**changes, **_settings(inner)}
        name = inner.get("group") if inner.get("group") in entries else inner.get("task")
        if isinstance(name, list):
            yield from _listed(group, name, merged, entries)
        elif isinstance(name, str):
            yield from _members(name, merged, entries)
        else:
            raise ConfigError(f"group '{group}' of lm-evaluation-harness has a member without a name: add its tasks")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a group sets for its tasks, of what is asked here."""
    return {key: config[key] for key in ("num_fewshot", "dataset_name", "dataset_path") if key in config}


def _described(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    data_set = config.get("dataset_path")
    if "class" in config or not isinstance(data_set, str):
        raise ConfigError(f"task '{name}' is written in Python, and does not say which data set it reads: mirror that")
    if data_set in FILE_FORMATS or "custom_dataset" in config:
        raise ConfigError(f"task '{name}' reads files of its own and no data set of the hub: it cannot be mirrored")
    metrics = config.get("metric_list") or ()
    filters = config.get("filter_list") or ()
    metadata = config.get("metadata") or {}
    return {
        "task": name,
        "data_set": data_set,
        "config": config.get("dataset_name"),
        "splits": list(dict.fromkeys(config[split] for split in SPLITS if config.get(split))),
        "metric": _metric(metrics[0]["metric"]) if metrics else None,
        "filter": filters[0].get("name") if filters else None,
        "num_fewshot": int(config.get("num_fewshot") or 0),
        "version": str(metadata["version"]) if "version" in metadata else None,
        "execute": bool(config.get("unsafe_code")),
        "harness_version": version("lm_eval"),
    }


def _metric(metric: Any) -> str:
    """A metric's name; of a function of the task its last part, as the harness reports it."""
    return str(getattr(metric, "__name__", metric)).rpartition(".")[2]


if __name__ == "__main__":
    serve(lambda request: json.dumps(describe(str(request["task"]))))
