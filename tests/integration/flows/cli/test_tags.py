"""`moxin tag`: given, listed, taken away."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from flows.cli import app
from flows.cli import tags as command
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from tests.support.tuned_family import publish_experiment


@pytest.fixture
def said(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    publish_experiment(ledger)

    @contextlib.contextmanager
    def opened(*_: Any) -> Iterator[Ledger]:
        yield ledger

    monkeypatch.setattr(command, "open_ledger", opened)

    def run(*arguments: str) -> str:
        app(["tag", *arguments], standalone_mode=False)
        return capsys.readouterr().out

    return run


def test_a_tag_is_given_listed_and_taken_away(said: Any) -> None:
    assert "no tags yet" in said("--list")
    assert said("sft_tulu", "best", "--experiment", "lr", "--why", "paper").startswith("best: sft_tulu ")
    (row,) = json.loads(said("--list", "--json"))["tags"]
    assert (row["name"], row["node"], row["why"]) == ("best", "sft_tulu", "paper")
    assert "paper" in said("--list")
    assert "best taken from sft_tulu" in said("--remove", "best")
    assert json.loads(said("--list", "--json"))["tags"] == []
    for words in ((), ("sft_tulu",), ("sft_tulu", "best", "--list"), ("--list", "--remove", "best")):
        with pytest.raises(ConfigError, match="give a node and a tag, or"):
            said(*words)
