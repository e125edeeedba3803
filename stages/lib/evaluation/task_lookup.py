"""What lm-evaluation-harness says of a task: its data set, splits, metric and shots. `moxin suite add` starts this.

A request names a `task`; the answer is a JSON list, one entry for each task, or member of a group.
The harness's own index is read, its definitions merged as it merges them; no data set is loaded and no function called.
"""

from __future__ import annotations

import difflib
import functools
import json
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.core.errors import ConfigError
from stages.core.probing import serve
from stages.lib.evaluation.task_tree import grow

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


@functools.cache
def _harness_version() -> str:
    """Read once: it parses the package's whole metadata, and a group has hundreds of members."""
    return version("lm_eval")


def describe(name: str) -> list[dict[str, Any]]:
    """The tasks that a name stands for: itself, or the members of a group or tag. Raises ConfigError."""
    entries = index()
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=3)
        hint = f"; did you mean {' or '.join(repr(other) for other in close)}?" if close else ""
        raise ConfigError(f"lm-evaluation-harness {_harness_version()} has no task '{name}'{hint}")
    return [_described(leaf.name, leaf.settings) for leaf in grow(name, entries).leaves()]


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
        "harness_version": _harness_version(),
    }


def _metric(metric: Any) -> str:
    """A metric's name; of a function of the task its last part, as the harness reports it."""
    return str(getattr(metric, "__name__", metric)).rpartition(".")[2]


if __name__ == "__main__":
    serve(lambda request: json.dumps(describe(str(request["task"]))))
