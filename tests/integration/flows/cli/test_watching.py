"""`moxin watch` and `moxin tensorboard` as they are called."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.cli import app, watching
from flows.cli.common import Terminal
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from tests.support.report_pages import publish


@pytest.fixture
def said(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    @contextlib.contextmanager
    def opened(*_: Any) -> Iterator[Ledger]:
        yield ledger

    monkeypatch.setattr(watching, "open_ledger", opened)
    monkeypatch.setenv("MOXIN_HOME", str(tmp_path))

    def run(*arguments: str) -> str:
        app(arguments, standalone_mode=False)
        return capsys.readouterr().out

    return run


def test_tensorboard_is_started_on_loopback_or_said_how_to_get(
    ledger: Ledger, tmp_path: Path, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(ledger, "pretrain_1", metrics=[{"step": 1, "loss": 9.0}])
    (run,) = json.loads(said("tensorboard", "--logdir-only", "--json"))["runs"]
    assert (run["run"], run["rows"]) == ("tiny/pretrain_1", 1)
    monkeypatch.setattr(watching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed here; .* -m pip install tensorboard"):
        said("tensorboard", "--logdir", str(tmp_path / "there"))
    assert list((tmp_path / "there" / "tiny" / "pretrain_1").iterdir()), "the files are written all the same"
    monkeypatch.setattr(watching.importlib.util, "find_spec", lambda name: object())
    started: list[list[str]] = []
    monkeypatch.setattr(watching.os, "execv", lambda program, arguments: started.append([program, *arguments]))
    said("tensorboard", "--port", "7007")
    folder = str(tmp_path / "tensorboard-shown")
    start = [sys.executable, sys.executable, "-m", "tensorboard.main"]
    assert started == [[*start, "--logdir", folder, "--host", "127.0.0.1", "--port", "7007"]]
    with pytest.raises(ConfigError, match="did you mean"):
        said("tensorboard", "--node", "pretrain_l")


def test_watch_looks_once_or_until_it_is_interrupted(said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(said("watch", "--json"))["running"] == []
    assert "nothing runs now" in said("watch", "--once")
    screen = io.StringIO()
    terminal = Terminal()
    terminal.console = Console(file=screen, force_terminal=True, width=100, height=30)
    monkeypatch.setattr(watching, "out", terminal)

    def interrupted(seconds: float) -> None:
        assert seconds == 0.5
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    said("watch", "--interval", "0.5")  # ends as if all were said
    assert "nothing runs now" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[?25h\x1b[?1049l"), "the terminal is as it was"
