"""`moxin experiments` and `moxin compare`: what the terminal says, and the page that is written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.cli import app, compare
from flows.settings import Settings
from stages.core.ledger import Ledger
from tests.support.tuned_family import publish_experiment


@pytest.fixture
def said(ledger: Ledger, settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command prints, over a ledger with an experiment `lr` of profile tiny."""
    publish_experiment(ledger)

    @contextlib.contextmanager
    def opened(*_: Any) -> Iterator[Ledger]:
        yield ledger

    module = compare.__globals__
    monkeypatch.setitem(module, "open_ledger", opened)
    monkeypatch.setattr(Settings, "load", lambda: settings)

    def run(*arguments: str) -> str:
        app(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return run


def test_the_list_says_who_why_and_how_many_results(said: Any) -> None:
    (row,) = json.loads(said("experiments", "--json"))["experiments"]
    assert (row["name"], row["why"], row["overrides"]) == ("lr", "a higher rate", ["sft_tulu.learning_rate=3e-4"])
    assert row["results"] > 5
    assert "a higher rate" in said("experiments")
    assert "no experiments yet" in said("experiments", "--profile", "7b")


def test_a_comparison_is_printed_and_has_a_page(said: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    text = said("compare", "tiny", "lr", "--output", str(page))
    assert "final_loss" in text
    assert str(page) in text
    assert "<title>Moxin: tiny and lr compared</title>" in page.read_text(encoding="utf-8")
    data = json.loads(said("compare", "tiny", "lr", "--json"))
    assert [side["name"] for side in data["sides"]] == ["tiny", "lr"]
