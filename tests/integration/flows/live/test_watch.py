"""`moxin watch`: what runs now, also of runs with other settings, over the result before."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows import profiles
from flows.live.attempt_events import local_log
from flows.live.watch import Watch, metric_to_draw
from flows.live.watch_view import view
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.records import AttemptRecord
from stages.pipeline import PIPELINE
from tests.support.report_pages import publish


def event(kind: str, second: int = 0, **fields: Any) -> str:
    return json.dumps({"time": f"2026-01-02T03:04:{second:02d}.000+00:00", "event": kind, **fields}) + "\n"


@pytest.fixture
def training(ledger: Ledger, tmp_path: Path) -> Path:
    """Attempt 2 of a training of other settings, which resumed at step 3, beside a finished result; its log."""
    publish(ledger, "pretrain_1", metrics=[{"step": s, "loss": 9.0 - s} for s in (1, 2, 3)])
    key = sha256(b"other settings")
    for epoch in (1, 2):
        ledger.acquire(key, "somebody") if epoch == 1 else None
        ledger.record_attempt(
            AttemptRecord(
                key=key,
                epoch=epoch,
                node="pretrain_1",
                run_id="r",
                launcher="process",
                started_at="2026-01-02T03:04:00Z",
            )
        )
    first, second = (local_log(tmp_path, key, epoch) for epoch in (1, 2))
    first.parent.mkdir(parents=True)
    first.write_text("".join(event("metric", s, step=s, values={"loss": 5.0 - s}) for s in (1, 2, 3, 4)))
    second.write_text(event("metric", 10, step=3, values={"loss": 1.9}) + event("progress", 10, done=3, total=12))
    return second


def test_the_curve_of_what_runs_grows_over_the_result_before(ledger: Ledger, tmp_path: Path, training: Path) -> None:
    watch = Watch(ledger, tmp_path, PIPELINE, profiles.load("tiny", PIPELINE))
    watch.look()
    (row,) = watch.snapshot()["running"]
    assert [(r["step"], r["loss"]) for r in row["rows"]] == [(1, 4.0), (2, 3.0), (3, 1.9)]
    assert [r["loss"] for r in row["former"]] == [8.0, 7.0, 6.0]
    assert (row["node"], row["epoch"], row["share"], row["here"]) == ("pretrain_1", 2, 0.25, True)
    with open(training, "a") as log:
        log.write(event("metric", 11, step=4, values={"loss": float("nan")}) + event("metric", 12, step=5, values={}))
        log.write('{"event": "metric", "st')  # is just being written
    watch.look()
    (row,) = watch.snapshot()["running"]
    assert [alarm["kind"] for alarm in row["alarms"]] == ["not finite"]
    assert row["silent_seconds"] > 60  # these rows are of January
    json.dumps(watch.snapshot(), allow_nan=False)

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(view(watch.snapshot(), "", 100))
    text = console.export_text()
    assert "pretrain_1: loss" not in text  # its newest row has none
    assert "loss not finite at step 4" in text
    console.print(view(watch.snapshot() | {"running": [row | {"last": {"step": 3, "loss": 1.9}}]}, "", 100))
    text = console.export_text()
    assert "pretrain_1: loss" in text
    assert "step 1 to 3" in text
    assert any(0x2800 < ord(character) <= 0x28FF for character in text)


def test_nothing_runs(ledger: Ledger, tmp_path: Path) -> None:
    watch = Watch(ledger, tmp_path, PIPELINE, profiles.load("tiny", PIPELINE))
    watch.look()
    shown = watch.snapshot()
    assert shown["running"] == []
    assert sum(shown["states"].values()) == len(PIPELINE)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(view(shown, "", 100))
    assert "nothing runs now" in console.export_text()


def test_the_metric_that_is_drawn() -> None:
    row = {"last": {"step": 1, "loss": 0.1, "reward": 0.5, "kl": 0.2}}
    assert [metric_to_draw(row, asked) for asked in ("", "kl", "unknown")] == ["reward", "kl", "reward"]
    assert metric_to_draw({"last": None}, "loss") == ""
