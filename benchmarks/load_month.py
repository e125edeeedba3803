"""The events of a training of a month, told in minutes: what becomes of log, TensorBoard, Prefect's database, memory.

    python -m benchmarks.load month [--days 30]

A row of metrics a second, a bar and a held-out loss now and then, as lines of JSON. They go the way of a stage's output
on a control plane: read as events, written to the log, shown to TensorBoard's files and to a task of a real Prefect
server. Only the clock by which the display is paced is the training's, and the lease is nobody's. A queue that is full
loses lines, so the teller waits for it: a training of a month is never that fast.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.memory import peak_kib, resident_kib
from flows import pacing
from flows.event_dispatch import EventDispatcher
from flows.launch.base import parse_event
from flows.live.attempt_events import LogTail
from flows.live.watch import Watched
from flows.running_stages import RunningStages
from flows.settings import Settings
from flows.tensorboard_events import TensorBoardObserver
from stages.core.files import ROOT
from stages.core.messages import Lease, StoreAddress

NODE = "pretrain_1"
DAY = 86_400
BATCH = 2_000
"""Events after which those who watch are waited for."""
QUIET_CLIENT = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
HELD_OUT, BAR, NOTE = 1_000, 10, 600
"""Steps between two held-out losses, two bars, two lines of text."""


def lines(steps: int) -> Iterator[tuple[int, str]]:
    """What the stage says, each with its second."""
    for step in range(1, steps + 1):
        loss = 2.0 + 8.0 / math.sqrt(step) + 0.02 * math.sin(step * 1.7)
        values = {
            "loss": loss, "grad_norm": 0.5 + 0.05 * math.cos(step * 0.9), "learning_rate": 3e-4,
            "tokens_per_second": 1e6 + step % 7, "step_seconds": 1.0,
        }  # fmt: skip
        if step % HELD_OUT == 0:
            values["val_loss"] = loss + 0.1
        yield step, json.dumps({"event": "metric", "step": step, "values": values})
        if step % BAR == 0:
            yield step, json.dumps({"event": "progress", "done": step, "total": steps, "unit": "steps"})
        if step % NOTE == 0:
            yield step, json.dumps({"event": "log", "level": "info", "message": f"step {step} of {steps}"})


class Telling:
    """A job that tells a month's events as fast as they are taken."""

    id = "month"

    def __init__(self, steps: int, events: EventDispatcher, folder: Path) -> None:
        self.steps, self.dispatcher, self.folder = steps, events, folder
        self.second, self.count = 0, 0

    def events(self) -> Iterator[dict[str, Any]]:
        begun = time.process_time()
        for second, line in lines(self.steps):
            self.second = second
            yield parse_event(line)
            self.count += 1
            if self.count % BATCH == 0:
                self.dispatcher.flush()
            if second % (self.steps // 5) == 0 and '"metric"' in line:
                cpu, resident = time.process_time() - begun, resident_kib() // 1024
                say(f"| {second / DAY:.1f} | {self.count:,} | {cpu:.0f} | {resident} | {disk(self.folder)} |")
        yield {"event": "done", "exit": "ok", "message": ""}

    def wait(self) -> int:
        return 0

    def stop(self, grace: float) -> None:
        """Nothing runs."""


def say(text: str) -> None:
    sys.__stdout__.write(text + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def mib(*paths: Path) -> float:
    files = [each for path in paths for each in ([path] if path.is_file() else path.rglob("*"))]
    return sum(each.stat().st_size for each in files if each.is_file()) / 2**20


def disk(folder: Path) -> str:
    """Megabytes of log, TensorBoard, Prefect's database."""
    database = mib(*(folder / "prefect").glob("prefect.db*"))
    return " | ".join(f"{one:.1f}" for one in (mib(folder / "log"), mib(folder / "tensorboard"), database))


def replay(folder: Path, days: float) -> None:
    """Tell all of it inside a flow of the Prefect server that the environment names."""
    from prefect import flow

    from flows.prefect_artifacts import ApiCallQueue, TaskObserver

    steps = int(days * DAY)

    @flow(name="month", persist_result=False)
    def month() -> None:
        api_calls = ApiCallQueue()
        dispatcher = EventDispatcher([TensorBoardObserver(folder / "tensorboard")])
        job = Telling(steps, dispatcher, folder)
        pacing.time = SimpleNamespace(monotonic=lambda: float(job.second))
        ledger: Any = SimpleNamespace(renew=lambda lease: None, outcome=lambda key, epoch: None)
        running = RunningStages(ledger, dispatcher, threading.Event())
        lease = Lease(key="0" * 64, epoch=1, holder="benchmark")
        say("\n| day | events | CPU s | resident MiB | log MiB | TensorBoard MiB | database MiB |")
        say("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        with dispatcher.subscribe(NODE, TaskObserver(NODE, api_calls)):
            dispatcher.tell(NODE, "state", state="running", message="")
            ended = running.follow(NODE, job, lease, folder / "log" / "month.jsonl", 1, 1.0)  # type: ignore[arg-type]
            dispatcher.tell(NODE, "state", state="done", seconds=days * DAY)
        dispatcher.flush()
        lost = "; ".join([*dispatcher.problems(), *filter(None, [api_calls.close()])])
        say(f"\nit ended: {ended[0]}; lost on the way: {lost or 'nothing'}")

    month()
    say(f"peak memory {peak_kib() // 1024} MiB; after the logs were sent: {disk(folder)}")


def watched(folder: Path) -> None:
    """What `moxin watch` takes to catch up with the log."""
    before, wall = time.process_time(), time.perf_counter()
    one = Watched(NODE, "0" * 64, 1, "", LogTail(folder / "log" / "month.jsonl"))
    one.read()
    took = time.process_time() - before
    say(
        f"'moxin watch' reads {one.count:,} rows in {took:.0f} s of processor ({time.perf_counter() - wall:.0f} by the"
        f" clock), keeps {len(one.curves.rows)}, {peak_kib() // 1024} MiB at most"
    )


def rows(database: Path) -> str:
    """What Prefect's database holds."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        counts = [(t, connection.execute(f"select count(*) from {t}").fetchone()[0]) for t in ("log", "artifact")]
    return ", ".join(f"{count:,} rows of {table}" for table, count in counts)


def main(folder: Path, days: float) -> None:
    """Start a server, tell it all, and look at what there is then."""
    from tests.support.prefect_runs import prefect_server

    (folder / "server").mkdir()
    nowhere = Settings(folder, StoreAddress(bucket="none", endpoint=None), "", True, True, {})
    with prefect_server(folder / "server", nowhere) as settings:
        env = os.environ | settings.environment() | QUIET_CLIENT | {"PREFECT_HOME": str(folder / "client")}
        for part in ("replay", "watched"):
            words = [sys.executable, "-m", "benchmarks.load_month", part, str(folder / "server"), str(days)]
            subprocess.run(words, cwd=ROOT, env=env, check=True)
        say(f"Prefect: {rows(folder / 'server' / 'prefect' / 'prefect.db')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["replay", "watched"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("days", type=float)
    given = parser.parse_args()
    if given.part == "replay":
        replay(given.folder, given.days)
    else:
        watched(given.folder)
