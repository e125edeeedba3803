"""What runs now: the state of every node, and the curves of those that train, over the result before."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.live.attempt_events import LogTail, local_log
from flows.live.curves import Curves, Row
from flows.log_lines import metric_rows
from flows.plan import State, make_plan
from flows.profiles import Profile
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger

PLAN_SECONDS = 10.0
"""Between two looks at every node's state, each as dear as a `moxin plan`; logs of what runs are read each time."""
SILENT = 10.0
"""A training is silent when it has told nothing for so many times its usual time between two rows."""
RECENT_SECONDS, MOST = 3600.0, 50
"""Logs on this machine that grew so lately, and so many of them, are looked at: somebody may be at work there."""
QUIET_SECONDS = 60.0
"""And for so long at least."""


@dataclass
class Watched:
    """One node that runs: what its newest attempt has told on this machine so far."""

    node: str
    key: str
    epoch: int
    started_at: str
    tail: LogTail
    former: list[Row] = field(default_factory=list[Row])
    curves: Curves = field(default_factory=Curves)
    done: float = 0.0
    total: float | None = None
    message: str = ""
    """Its last line of text."""
    times: list[float] = field(default_factory=list[float])
    """Of its first and its last row, in seconds since 1970."""
    count: int = 0

    def read(self) -> None:
        """Take what it has told since."""
        for event in self.tail.events():
            kind = event.get("event")
            if kind == "metric" and isinstance(event.get("values"), dict):
                self.curves.add(int(event["step"]), event["values"])
                self.count += 1
                at = _seconds(event.get("time"))
                self.times = [*self.times[:1], at] if at else self.times
            elif kind == "progress":
                self.done, self.total = float(event["done"]), event.get("total")
            elif kind == "log" and event.get("level") != "debug":
                self.message = str(event.get("message"))

    @property
    def share(self) -> float | None:
        """How much of it is done."""
        return min(1.0, self.done / self.total) if self.total else None

    def silent(self, now: float) -> float | None:
        """For how many seconds it has told no row although it should have; None: it tells."""
        if self.count < 3 or len(self.times) < 2:
            return None
        usual = (self.times[-1] - self.times[0]) / (self.count - 1)
        waited = now - self.times[-1]
        return waited if waited > max(QUIET_SECONDS, SILENT * usual) else None

    def row(self, now: float) -> dict[str, Any]:
        """As JSON values."""
        return {
            "node": self.node, "key": self.key, "epoch": self.epoch, "started_at": self.started_at,
            "here": self.tail.path.is_file(), "share": self.share, "last": self.curves.last or None,
            "rows": self.curves.rows, "former": self.former, "message": self.message,
            "silent_seconds": self.silent(now),
            "alarms": [alarm.row() for alarm in self.curves.alarms],
        }  # fmt: skip


def _seconds(text: Any) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0


class Watch:
    """Looks at a profile's or an experiment's nodes again and again."""

    def __init__(self, ledger: Ledger, home: Path, pipeline: Pipeline, values: Profile) -> None:
        self._ledger, self._home, self._pipeline, self._values = ledger, home, pipeline, values
        self._looked = -PLAN_SECONDS
        self.nodes: list[dict[str, Any]] = []
        """Every node with its state, as `moxin plan` tells it."""
        self.running: dict[str, Watched] = {}
        """Those that run, by key."""

    def look(self) -> None:
        """Bring `nodes` and `running` up to now. Raises InfraError where the store is away."""
        if time.monotonic() - self._looked >= PLAN_SECONDS:
            plans = make_plan(self._pipeline, self._values, self._ledger)
            self._looked = time.monotonic()
            self.nodes = [plan.row() for plan in plans]
            keys = [plan.key for plan in plans if plan.state is State.LEASED and plan.key]
            keys += [key for key in self._written_here() if key not in keys and self._ledger.busy(key)]
            self.running = {key: one for key in keys if (one := self._watched(key))}
        for one in self.running.values():
            one.read()

    def _written_here(self) -> list[str]:
        """Keys whose logs on this machine grew lately: also of runs with other settings than those watched."""
        folders = [path for path in (self._home / "logs" / "stages").glob("*/") if path.is_dir()]
        ages = {path.name: time.time() - max(f.stat().st_mtime for f in [path, *path.iterdir()]) for path in folders}
        return sorted((key for key, age in ages.items() if age < RECENT_SECONDS), key=ages.__getitem__)[:MOST]

    def _watched(self, key: str) -> Watched | None:
        attempts = self._ledger.attempts(key)
        if not attempts:
            return None
        newest = attempts[-1]
        known = self.running.get(key)
        if known is not None and known.epoch == newest.epoch:
            return known
        one = Watched(newest.node, key, newest.epoch, newest.started_at, self._tail(key, newest.epoch))
        one.former = self._former(newest.node)
        for before in attempts[:-1]:  # what an attempt before had done is in its checkpoint, and in no log of this one
            Watched(newest.node, key, before.epoch, "", self._tail(key, before.epoch), curves=one.curves).read()
        return one

    def _tail(self, key: str, epoch: int) -> LogTail:
        return LogTail(local_log(self._home, key, epoch))

    def _former(self, name: str) -> list[Row]:
        record = self._ledger.node(self._values.names, name)
        result = self._ledger.manifest(record.key) if record else None
        return metric_rows(self._ledger.store, result[0].metrics_object) if result else []

    def snapshot(self) -> dict[str, Any]:
        """All of it as JSON values."""
        now = time.time()
        counts: dict[str, int] = {}
        for row in self.nodes:
            counts[row["state"]] = counts.get(row["state"], 0) + 1
        return {
            "profile": self._values.name, "experiment": self._values.experiment or None,
            "at": datetime.now(UTC).isoformat(timespec="seconds"), "states": counts, "nodes": self.nodes,
            "running": [one.row(now) for one in self.running.values()],
        }  # fmt: skip


def metric_to_draw(row: Mapping[str, Any], asked: str) -> str:
    """Which metric of a running node is drawn: the one asked for where it has it, else its reward or its loss."""
    last: Mapping[str, Any] = row["last"] or {}
    return next((name for name in (asked, "reward", "accuracy", "loss") if name and name in last), "")
