"""`moxin logs`: what it shows of a log, as it was written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import profiles
from flows.cli import app, logs
from flows.log_lines import LONGEST, FileLines
from flows.settings import Settings
from stages.core.messages import StoreAddress
from stages.pipeline import PIPELINE

EVENTS: list[dict[str, Any]] = [
    {"time": "2026-01-02T03:04:05.000+00:00", "event": "log", "level": "info", "message": "begins"},
    {"time": "2026-01-02T03:04:06.000+00:00", "event": "log", "level": "debug", "message": "x" * LONGEST},
    {"time": "2026-01-02T03:04:07.000+00:00", "event": "metric", "step": 3, "values": {"loss": 1.5}},
    {"time": "2026-01-02T03:04:08.000+00:00", "event": "done", "exit": "ok", "message": ""},
]
"""The second one is a progress bar that never ended its line: as an event it is longer than a line may be."""


@pytest.fixture(autouse=True)
def _log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "000001.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in EVENTS))

    @contextlib.contextmanager
    def ledger(settings: Settings) -> Iterator[None]:
        yield None

    module = logs.__globals__
    monkeypatch.setattr(Settings, "load", lambda: Settings(tmp_path, StoreAddress(bucket="b"), "", True, True))
    monkeypatch.setitem(module, "open_ledger", ledger)
    monkeypatch.setitem(module, "read_profile", lambda ledger, name, *_: (PIPELINE, profiles.load(name, PIPELINE)))
    monkeypatch.setitem(module, "_log_lines", lambda *_: FileLines(path))


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    app(["logs", "collect", *options], standalone_mode=False)
    return capsys.readouterr().out


def test_a_line_that_is_too_long_for_one_hides_nothing_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    """It ended the command with a traceback."""
    assert printed(capsys).splitlines() == ["03:04:05 info    begins", "03:04:07 step 3 loss=1.5", "03:04:08 ok "]
    assert printed(capsys, "--all").count("x") >= LONGEST


def test_as_json_each_line_is_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    events = [json.loads(row) for row in printed(capsys, "--json").splitlines()]
    assert [event["event"] for event in events] == ["log", "log", "log", "metric", "done"]
    assert sum(event.get("message", "").count("x") for event in events) == LONGEST
