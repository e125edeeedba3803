"""What lm-evaluation-harness says of a task: its data set, splits, metric and shots. `moxin suite add` starts this.

A request names a `task`; the answer is a JSON list, one entry for each task, or member of a group.
The harness's own index is read, its definitions merged as it merges them; no data set is loaded and no function called.
What is used of it is kept in the user's cache (`KEPT`) until one of the files that it was read from changes.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib.util
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.core.errors import ConfigError
from stages.core.files import write_atomically
from stages.core.probing import serve
from stages.lib.evaluation.task_tree import grow

OURS = Path(__file__).parent / "tasks"
"""Definitions of this project, for what the harness lacks."""
FILE_FORMATS = frozenset({"json", "csv", "text", "parquet", "arrow", "webdataset", "imagefolder"})
"""Names that `datasets` reads files with: no data sets."""
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


KEPT = "lm_eval_tasks.json"
"""The index as it was last read, in the user's cache: to read it anew takes 12 CPU seconds."""
USED = frozenset(
    {"class", "custom_dataset", "dataset_name", "dataset_path", "filter_list", "group", "metadata", "metric_list"}
    | {"num_fewshot", "tag", "task", "unsafe_code", *SPLITS}
)
"""Of a definition what is looked at here."""

_LOCK = threading.Lock()


@dataclass(frozen=True)
class Kind:
    """TASK, PY_TASK, GROUP or TAG."""

    name: str


@dataclass(frozen=True)
class Entry:
    """What a name stands for, as `task_tree.grow` reads it. cfg: its definition, as far as it is `USED`."""

    kind: Kind
    cfg: Mapping[str, Any]
    tags: tuple[str, ...]


def index() -> Mapping[str, Entry]:
    """The harness's entries by name, read once. Raises ConfigError where it is not installed."""
    with _LOCK:
        return _index()


@functools.cache
def _index() -> Mapping[str, Entry]:
    digest, path = _digest(), _cache() / KEPT
    kept: Any = None
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(path.read_bytes())
    if not isinstance(kept, dict) or kept.get("digest") != digest:
        kept = {"digest": digest, "entries": read_harness()}
        with contextlib.suppress(OSError):  # where nothing can be kept it is read each time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(kept))
    return {name: Entry(Kind(kind), cfg, tuple(tags)) for name, (kind, cfg, tags) in kept["entries"].items()}


def read_harness() -> dict[str, Any]:
    """Name to (kind, definition, tags), as JSON values, of all entries of the harness's own index (12 CPU seconds)."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise _missing(str(error)) from error
    entries = TaskManager(include_path=str(OURS) if OURS.is_dir() else None).task_index
    used: dict[str, Any] = {}
    for name, entry in entries.items():
        config = {key: value for key, value in (entry.cfg or {}).items() if key in USED}
        used[name] = (entry.kind.name, config, sorted(entry.tags))
    return json.loads(json.dumps(used, default=str))


def _digest() -> str:
    """Of this file, and of names, sizes and times of all files that hold definitions."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise _missing("No module named 'lm_eval'")
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for home in (Path(spec.submodule_search_locations[0]) / "tasks", OURS):
        for folder, folders, names in os.walk(home):
            folders.sort()
            for name in sorted(names):
                if not name.endswith((".py", ".pyc")):
                    stat = os.stat(os.path.join(folder, name))
                    digest.update(f"{folder}/{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _missing(reason: str) -> ConfigError:
    return ConfigError(
        f"lm-evaluation-harness cannot be imported here ({reason}): run this where every stage is installed, or"
        " pip install 'moxin[eval]'"
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moxin"


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
