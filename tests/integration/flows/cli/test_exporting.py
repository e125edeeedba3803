"""`moxin export`: the result of an experiment goes to a folder, and a line says so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.cli import app
from flows.cli import exporting as command
from stages.core.ledger import Ledger
from tests.support.family_ledger import artifact
from tests.support.report_pages import publish


def test_a_line_says_what_is_where(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = artifact(ledger, "tokenizer", "tokenizer", "Tokenizer", {"tokenizer.json": b"{}"})
    result = publish(ledger, "tokenizer", outputs={"tokenizer": tokenizer})

    @contextlib.contextmanager
    def opened(*_: Any) -> Iterator[Ledger]:
        yield ledger

    monkeypatch.setattr(command, "open_ledger", opened)
    app(["export", "tokenizer", str(tmp_path / "a"), "--key", result.key[:12]], standalone_mode=False)
    assert capsys.readouterr().out == f"tokenizer.tokenizer: 1 file, 2 bytes in {tmp_path / 'a'}\n"
    app(["export", "tokenizer", str(tmp_path / "b"), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == {
        "node": "tokenizer", "key": result.key, "folder": str(tmp_path / "b"), "port": "tokenizer",
        "digest": tokenizer.digest, "files": 1, "bytes": 2, "kept": 0,
    }  # fmt: skip
