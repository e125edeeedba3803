"""Metric rows in checkpoints: each is read once and stored about once, whatever their number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.core import metric_rows
from stages.core.artifacts import FileEntry
from stages.core.keys import sha256
from stages.core.metric_rows import METRICS_FILE, MetricRows, is_rows


def row(step: int) -> str:
    return json.dumps({"step": step, "loss": 1 / (step + 1)}) + "\n"


class Stored:
    """What checkpoints of some rows would hold."""

    def __init__(self, root: Path) -> None:
        self.files: dict[str, bytes] = {}
        self.sent = 0
        self.rows = MetricRows(root)

    def commit(self, step: int) -> list[FileEntry]:
        self.rows.take(step)
        while (segment := self.rows.full_segment()) is not None:
            self.rows.stored(self._put(segment.name, segment.data))
        return [*self.rows.segments, self._put(METRICS_FILE, self.rows.rest())]

    def _put(self, name: str, data: bytes) -> FileEntry:
        self.files[name] = data
        self.sent += len(data)
        return FileEntry(path=name, size=len(data), sha256=sha256(data), object=name)


def test_rows_come_back_as_they_were_written_up_to_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_rows, "SEGMENT", 1000)
    stored = Stored(tmp_path)
    entries: list[FileEntry] = []
    with open(tmp_path / METRICS_FILE, "a", encoding="utf-8") as stream:
        for step in range(1, 501):
            stream.write(row(step))
            stream.flush()
            if step % 7 == 0:
                entries = stored.commit(step - 3)  # the stage has gone on meanwhile
    assert len(entries) > 10
    assert all(is_rows(entry.path) for entry in entries)
    (tmp_path / "next" / ".metrics").mkdir(parents=True)
    (tmp_path / "fetched" / ".metrics").mkdir(parents=True)
    for entry in entries:
        (tmp_path / "fetched" / entry.path).write_bytes(stored.files[entry.path])
    resumed = MetricRows(tmp_path / "next")
    resumed.restore(entries, tmp_path / "fetched")
    assert (tmp_path / "next" / METRICS_FILE).read_text() == "".join(row(step) for step in range(1, 495))
    assert resumed.rest() == stored.rows.rest()
    assert [entry.object for entry in resumed.segments] == [entry.object for entry in entries[:-1]]


def test_a_commit_costs_by_new_rows_and_not_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """113,000 rows in 1,464 checkpoints are 34 days; here a hundredth, with segments of a hundredth."""
    monkeypatch.setattr(metric_rows, "SEGMENT", 10_000)
    stored, parsed = Stored(tmp_path), [0]
    loads = json.loads

    def counted(text: bytes) -> object:
        parsed[0] += 1
        return loads(text)

    monkeypatch.setattr(metric_rows.json, "loads", counted)
    rows = 11_300
    with open(tmp_path / METRICS_FILE, "a", encoding="utf-8") as stream:
        for step in range(1, rows + 1):
            stream.write(row(step))
            if step % 77 == 0:
                stream.flush()
                stored.commit(step)
    written = (tmp_path / METRICS_FILE).stat().st_size
    assert parsed[0] == rows // 77 * 77, "each row once"
    assert stored.sent < written + rows // 77 * 10_000, "whole segments once, and less than one with each checkpoint"


def test_a_row_that_is_half_written_waits(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    (tmp_path / METRICS_FILE).write_text(row(1) + row(2)[:9])
    stored.commit(5)
    assert stored.rows.rest().decode() == row(1)
    (tmp_path / METRICS_FILE).write_text(row(1) + row(2))
    stored.commit(5)
    assert stored.rows.rest().decode() == row(1) + row(2)
