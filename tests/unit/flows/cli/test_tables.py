"""`moxin tables`: each form, and choices that do not go together. Every score of ours here is invented."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from flows import profiles
from flows.cli import app, tables
from flows.report import data
from stages.core.errors import ConfigError
from stages.pipeline import PIPELINE
from tests.support.evaluation_reports import collected, evaluation, toy


@pytest.fixture(autouse=True)
def _results(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger with one evaluation, of toy data."""
    reports: dict[str, Any] = {"evaluate_original": evaluation("pretrain_2", toy("table_2", "PIQA", 0.5))}
    results = collected(reports, tuple(node.name for node in PIPELINE if node.name not in reports))

    @contextlib.contextmanager
    def ledger() -> Iterator[None]:
        yield None

    module = tables.__globals__
    monkeypatch.setitem(module, "open_ledger", ledger)
    monkeypatch.setitem(module, "read_profile", lambda ledger, name, *_: (PIPELINE, profiles.load(name, PIPELINE)))
    monkeypatch.setattr("flows.experiments.results.records", lambda *_: {})
    monkeypatch.setattr(data, "collect_scores", lambda *_, **__: results)


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    app(["tables", *options], standalone_mode=False)
    return capsys.readouterr().out


def test_all_tables_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys)
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("Table ")] == [
        f"Table {number}" for number in range(2, 9)
    ]
    assert "toy-PIQA" in text
    assert "50.0 ±3.0" in text
    assert "not beside the paper's numbers: toy-PIQA: the questions were made by this run" in text


def test_one_table_as_json_csv_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads(printed(capsys, "--table", "2", "--json"))
    assert [table["table"] for table in value["tables"]] == [2]
    assert value["tables"][0]["rows"][0]["scores"]["PIQA"]["value"] == 0.5
    rows = list(csv.DictReader(io.StringIO(printed(capsys, "-t", "2", "--csv"))))
    assert [(row["model"], row["column"], row["paper"]) for row in rows] == [("Original", "toy-PIQA", "")]
    assert printed(capsys, "-t", "2", "--markdown").startswith("## Table 2: Base models, zero-shot")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--table", "9"), r"--table 9: the paper's tables of scores are 2 to 8"),
        (("--json", "--csv"), r"--json, --csv and --markdown are three forms: choose one"),
    ],
)
def test_a_wrong_choice_is_one_line(capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        printed(capsys, *options)
