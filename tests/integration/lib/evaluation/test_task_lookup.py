"""What is kept of lm-evaluation-harness's index answers as the index itself does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from stages.core.errors import ConfigError
from stages.lib.evaluation import task_lookup


def described(name: str) -> Any:
    try:
        return task_lookup.describe(name)
    except ConfigError as error:
        return str(error)


def test_every_name_is_described_as_by_the_index_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entries = TaskManager(include_path=str(task_lookup.OURS)).task_index
    monkeypatch.setattr(task_lookup, "_index", lambda: entries)
    itself = {name: described(name) for name in entries}
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(TaskManager, "task_index", entries, raising=False)
    monkeypatch.setattr(TaskManager, "__init__", lambda self, **options: None)
    for _ in range(2):  # read, then as it was kept
        task_lookup._index.cache_clear()
        assert {name: described(name) for name in task_lookup.index()} == itself
    task_lookup._index.cache_clear()
