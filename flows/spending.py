"""The budget of a run: what its nodes would cost before it begins, what their attempts have cost while it runs, and
whether what is left fits.

An attempt costs the GPUs that are held for it, from its first word to its end, failed ones too. One without GPUs costs
the cores that are held, until its result says how much processor time it took. Waiting in a queue costs nothing.
Prices: infra/gpu_prices.toml.

A run counts anew: what earlier runs made costs nothing. One that was started again by itself after a crash goes on with
what the lost one had spent.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import cost, training_work
from flows.cost import Estimate
from flows.launch.base import Handle
from flows.plan import NodePlan
from flows.profiles import Profile
from flows.terminal_text import counted
from stages.core.errors import ConfigError, ExitClass, StageError
from stages.core.files import write_atomically
from stages.core.messages import StageResult
from stages.core.resources import Resources

WRITE_SECONDS = 60.0
"""How often what runs now is written down at most, for a run that goes on after a crash."""
NAMED = 4
"""Nodes that a line names; of more it says how many."""


class OverBudget(StageError):
    """A node was not begun: with what is left, the run would cost more than its budget."""

    exit_class = ExitClass.PREEMPTED


@dataclass(frozen=True)
class NodeCost:
    """What a node that is to run would cost."""

    name: str
    dollars: float | None
    """None: not known."""
    gpu_hours: float = 0.0
    core_hours: float = 0.0
    basis: str = ""
    resources: Resources = field(default_factory=Resources)
    keeps: bool = False
    """Whether what a broken attempt has paid for is kept, in checkpoints."""

    def row(self) -> dict[str, Any]:
        """As JSON values, and for tables."""
        price = "not known" if self.dollars is None else round(self.dollars, 4)
        hours = {"GPU-hours": round(self.gpu_hours, 2), "core-hours": round(self.core_hours, 2)}
        return {"node": self.name, **hours, "dollars": price, "from": self.basis}


def check_amount(budget: float | None) -> None:
    """Raise ConfigError for a budget that is no sum of money."""
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise ConfigError(f"budget = {budget:g}: give dollars, a number above 0, or leave it out")


def costs(plans: Sequence[NodePlan], profile: Profile, estimates: Mapping[str, Estimate]) -> list[NodeCost]:
    """Of the nodes that will run. Of one that goes on from a checkpoint, what is left counts."""
    rows: list[NodeCost] = []
    for plan in plans:
        if not plan.will_run:
            continue
        name, one = plan.node.name, estimates[plan.node.name]
        config = profile.configs[name]
        steps = training_work.steps_of(config, 0) if plan.step else 0
        left = max(0.0, 1 - plan.step / steps) if plan.step and steps else 1.0
        rows.append(
            NodeCost(
                name,
                one.dollars * left if one.basis else None,
                one.gpu_hours * left,
                one.core_hours * left,
                one.basis,
                profile.resources[name],
                plan.node.resumes(config) != cost.ITS_BEGINNING,
            )
        )
    return rows


def table(rows: Sequence[NodeCost]) -> list[dict[str, Any]]:
    """A row for each node, the dearest first, and their sum."""
    dear = sorted(rows, key=lambda row: -(row.dollars or 0.0))
    hours = sum(row.gpu_hours for row in rows), sum(row.core_hours for row in rows)
    total = NodeCost("sum", sum(row.dollars or 0.0 for row in rows), *hours)
    return [row.row() for row in (*dear, total)]


def refusal(rows: Sequence[NodeCost], budget: float, before: float = 0.0) -> str | None:
    """Why a run must not begin; None when its estimate is within the budget. before: spent by a run that it goes on
    with.
    """
    total = before + sum(row.dollars or 0.0 for row in rows)
    if total <= budget:
        return None
    dear = sorted((row for row in rows if row.dollars), key=lambda row: -(row.dollars or 0.0))
    most = ", ".join(f"{row.name} {money(row.dollars or 0.0)}" for row in dear[:NAMED])
    spent = f", {money(before)} of it spent before a crash" if before else ""
    return (
        f"this run would cost about {money(total)}{spent}, above its budget of {money(budget)}; most of it: {most}."
        f"{not_known(rows)} Select fewer nodes, raise the budget, or approve the estimate: --approve (in a deployment:"
        " approve = true)"
    )


def not_known(rows: Sequence[NodeCost]) -> str:
    """A sentence about the nodes that no sum has; "": there are none."""
    names = [row.name for row in rows if row.dollars is None]
    return f" Not in the sum, as their cost is not known: {_named(names)}." if names else ""


def money(dollars: float) -> str:
    """For people: small sums are no zeros."""
    return f"${dollars:,.2f}" if dollars == 0 or dollars >= 0.01 else f"${dollars:.2g}"


def _named(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


class Spending:
    """What a run has spent. Its methods may be called from any thread."""

    def __init__(
        self,
        rows: Sequence[NodeCost],
        prices: Mapping[str, Any],
        budget: float,
        approved: bool = False,
        file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """approved: it may cost what it costs, and is only counted. file: where it is written down, for a run that goes
        on after a crash.
        """
        self.rows, self.budget, self.stopped = rows, budget, False
        self._rows = {row.name: row for row in rows}
        self._prices, self._approved, self._file, self._clock = prices, approved, file, clock
        self._left = dict(self._rows)
        self._spent: dict[str, float] = {}
        self._last: dict[str, float] = {}
        """What the newest attempt was counted with."""
        self._began: dict[str, float] = {}
        """When the attempts that run now had their first word."""
        self._before: dict[str, float] = {}
        """What the lost run had spent: "": on attempts that had ended; by node: on those that ran."""
        self._lock = threading.RLock()
        self._written = 0.0

    def begin(self, lost: bool) -> list[str]:
        """Begin to count: anew, or on from what a lost run of the same parameters wrote down. Lines for people. Raises
        ConfigError when the estimate is above the budget.
        """
        lines: list[str] = []
        with self._lock:
            if lost:
                try:
                    kept: dict[str, float] = json.loads((self._file or Path()).read_text("utf-8"))
                    self._before = {name: float(dollars) for name, dollars in kept.items()}
                    lines.append(f"{money(self.before)} were spent before the crash, and count")
                except (OSError, ValueError, AttributeError, TypeError):
                    lines.append("what was spent before the crash is not known on this machine: counted anew")
            self._write()
        why = refusal(self.rows, self.budget, self.before)
        if why and not self._approved:
            raise ConfigError(why)
        total = self.before + sum(row.dollars or 0.0 for row in self.rows)
        approved = ", approved" if why else ""
        lines.append(f"budget {money(self.budget)}, estimate {money(total)}{approved}.{not_known(self.rows)}")
        return lines

    def finish(self) -> None:
        """The run has ended in order: no other goes on with its count."""
        if self._file:
            self._file.unlink(missing_ok=True)

    @property
    def before(self) -> float:
        """What the run had spent that this one goes on with."""
        return sum(self._before.values())

    @property
    def spent(self) -> float:
        """Dollars so far, of attempts that run now too."""
        with self._lock:
            return self.before + sum(self._spent.values()) + sum(map(self._running, self._began))

    @property
    def rest(self) -> float:
        """What the nodes that have not ended would cost from now on."""
        with self._lock:
            return sum(map(self._rest, self._left.values()))

    def check(self) -> None:
        """Raise OverBudget when no attempt may begin any more: with what is left, the budget would not do."""
        with self._lock:
            if not self._approved and (self.stopped or self.spent + self.rest > self.budget):
                self.stopped = True
                raise OverBudget(self.message())

    def message(self) -> str:
        """Why the run stopped, and how it goes on."""
        with self._lock:
            left = [name for name in self._left if name not in self._began]
            cents = math.ceil(self.rest * 100 - 1e-6) / 100 or 0.01
            return (
                f"{money(self.spent)} of {money(self.budget)} are spent, and {counted(len(left), 'node')}"
                f" ({_named(left)}) would cost about {money(self.rest)} more: nothing more was started."
                f"{not_known([self._left[name] for name in left])} What has finished is in the ledger. The next run"
                f" counts anew: go on with --budget {cents:.2f} or more, or with --approve (in a deployment: budget,"
                " approve = true)"
            )

    # --- attempts -------------------------------------------------------------------------------------------------

    def metered(self, name: str, handle: Handle, queues: bool, taken_over: bool) -> Handle:
        """A job whose time is counted: from now on, or from its first word where it may wait in a queue. taken_over:
        the job of a lost run, which counted it too.
        """
        with self._lock:
            if taken_over:
                self._before.pop(name, None)
            if not queues:
                self._begin(name, self._clock())
        return _Metered(handle, lambda event: self._event(name, event))

    def end(self, name: str) -> None:
        """The newest attempt is over."""
        with self._lock:
            self._last[name] = self._running(name)
            self._began.pop(name, None)
            self._spent[name] = self._spent.get(name, 0.0) + self._last[name]
            self._write()

    def settle(self, result: StageResult) -> None:
        """The newest attempt at a node made its result, which knows better what was used."""
        with self._lock:
            if row := self._rows.get(result.node):
                dollars = cost.measured(result, row.resources, self._prices).dollars
                self._spent[row.name] = self._spent.get(row.name, 0.0) - self._last.get(row.name, 0.0) + dollars
                self._write()

    def close(self, name: str) -> None:
        """A node is not attempted any more in this run."""
        with self._lock:
            self._left.pop(name, None)

    def _begin(self, name: str, at: float) -> None:
        if name in self._rows and name not in self._began:
            self._began[name] = at
            self._write()

    def _event(self, name: str, event: Mapping[str, Any]) -> None:
        with self._lock:
            if event["event"] == "begun":
                self._begin(name, min(event["at"], self._clock()))
            elif self._clock() - self._written > WRITE_SECONDS:
                self._write()

    def _running(self, name: str) -> float:
        if name not in self._began:
            return 0.0
        resources = self._rows[name].resources
        cards, cores = self._prices["gpu"]["dollars_per_hour"], self._prices["cpu"]["dollars_per_core_hour"]
        hourly = resources.nodes * (resources.gpus * cards if resources.gpus else resources.cpus * cores)
        return max(0.0, self._clock() - self._began[name]) / 3600 * hourly

    def _rest(self, row: NodeCost) -> float:
        paid = self._running(row.name) + (self._spent.get(row.name, 0.0) if row.keeps else 0.0)
        return max(0.0, (row.dollars or 0.0) - paid)

    def _write(self) -> None:
        """Nothing depends on it but a run that goes on after a crash, which says where it lacks."""
        if self._file:
            self._written = self._clock()
            ended = self._before.get("", 0.0) + sum(self._spent.values())
            lost = {name: dollars for name, dollars in self._before.items() if name}
            now = {name: self._running(name) + lost.pop(name, 0.0) for name in self._began}
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._file, json.dumps({**lost, **now, "": ended}))


class _Metered:
    """A job whose events pass by a counter."""

    def __init__(self, handle: Handle, see: Callable[[Mapping[str, Any]], None]) -> None:
        self._handle, self._see = handle, see

    @property
    def id(self) -> str:
        return self._handle.id

    def events(self) -> Iterator[dict[str, Any]]:
        for event in self._handle.events():
            self._see(event)
            yield event

    def wait(self) -> int:
        return self._handle.wait()

    def stop(self, grace: float) -> None:
        self._handle.stop(grace)
