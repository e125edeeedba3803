"""How `moxin plan` ends: with 1 when something stands in the run's way, and its JSON is whole all the same. It needs
no store and no services.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import cli, preflight


@pytest.fixture(autouse=True)
def nothing_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("MOXIN_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MOXIN_HOME", str(tmp_path))


def planned(*arguments: str) -> tuple[int, dict[str, Any]]:
    ended = CliRunner().invoke(cli.app, ["plan", "--profile", "7b", "--select", "pretrain_1", "--json", *arguments])
    return ended.exit_code, json.loads(ended.stdout)


def test_it_ends_with_1_when_something_stands_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "problems", lambda *arguments: [])
    select = ("--select", "+pretrain_1")
    status, told = planned(*select)
    assert (status, told["limits"]) == (0, [])
    status, told = planned(*select, "--set", "resources.pretrain_1.memory_gib=32")
    assert status == 1
    assert [line.partition(":")[0] for line in told["limits"]] == ["pretrain_1"]
    assert set(told["limits"]) <= set(told["warnings"])


def test_before_there_is_a_store_it_says_so_and_plans(tmp_path: Path) -> None:
    _, told = planned()
    (note,) = [line for line in told["warnings"] if "nothing had run" in line]
    assert note.endswith("no object store: start the embedded services with 'moxin up', or set MOXIN_S3_ENDPOINT")
    (row,) = told["nodes"]
    assert (row["name"], row["state"], row["key"]) == ("pretrain_1", "blocked", None)
    assert list(tmp_path.iterdir()) == [], "a plan leaves nothing"


def test_a_problem_ends_it_with_1_too() -> None:
    status, told = planned("--profile", "tiny", "--select", "+tokenizer", "--set", "tokenizer.origin=adopt")
    assert status == 1
    assert any(problem["node"] == "tokenizer" for problem in told["problems"])


def test_every_way_to_share_a_training_has_a_formula() -> None:
    """Tensor parallelism halves what a process computes with; the whole plan says so."""

    def parts(*sizes: str) -> dict[str, float]:
        chosen = [word for size in sizes for word in ("--set", f"pretrain_1.parallel.{size}")]
        _, told = planned("--select", "+pretrain_1", *chosen)
        row = next(row for row in told["nodes"] if row["name"] == "pretrain_1")
        assert row["estimate"]["memory_unknown"] == ""
        return row["estimate"]["memory"]["parts"]

    whole, halved = parts(), parts("tensor=2")
    assert 0.5 < halved["weights"] / whole["weights"] < 0.52
    assert 0.5 < halved["gradients"] / whole["gradients"] < 0.52
