"""What a person at a terminal sees of a run: a live progress display, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from flows.terminal_text import line, literal

if TYPE_CHECKING:
    from rich.progress import TaskID

    from flows.plan import NodePlan

COLOURS = {
    "cached": "green",
    "done": "green",
    "drift": "yellow",
    "run": "cyan",
    "resume": "cyan",
    "pending": "blue",
    "leased": "magenta",
    "damaged": "red",
    "blocked": "red",
    "failed": "red",
    "stopped": "yellow",
    "skipped": "yellow",
}
PLAIN_SECONDS = 10.0
"""Between two progress lines of one node where there is no terminal."""


class RunDisplay:
    """An observer that shows every node's state, progress and last metrics. A context manager."""

    def __init__(self, console: Console, nodes: int) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # a run's alone

        self.console, self._live = console, console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<20}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._notes: dict[str, str] = {}
        self._nodes, self._done = nodes, 0

    def __enter__(self) -> RunDisplay:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._progress.stop()

    def event(self, node: str, event: Mapping[str, Any]) -> None:
        """Show one event."""
        kind = event["event"]
        if kind == "state":
            self._state(node, event)
        elif kind == "progress":
            self._moved(node, event)
        elif kind == "metric":
            values = {k: v for k, v in event["values"].items() if k in ("loss", "val_loss", "tokens_per_second")}
            self._notes[node] = literal(f"step {event['step']} " + " ".join(f"{k} {v:.4g}" for k, v in values.items()))
            if node in self._tasks:
                self._progress.update(self._tasks[node], note=self._notes[node])
        elif kind == "log" and event.get("level") in ("warning", "error"):
            self.console.print(line(f"  {node}: ", (event["level"], "yellow"), " ", event["message"]))

    def _state(self, node: str, event: Mapping[str, Any]) -> None:
        state, message = event["state"], event.get("message") or ""
        if state == "running" and self._live:
            self._tasks[node] = self._progress.add_task(node, total=None, note="")
            return
        if node in self._tasks:
            self._progress.remove_task(self._tasks.pop(node))
        if state in ("done", "cached", "failed", "stopped", "skipped"):
            self._done += 1
        took = f" {event['seconds']:7.1f} s" if "seconds" in event else ""
        colour = COLOURS.get(state, "white")
        done = f"{self._done:>3}/{self._nodes}"
        self.console.print(line((done, "dim"), f" {node:<20} ", (f"{state:<8}", colour), f"{took}  ", (message, "dim")))

    def _moved(self, node: str, event: Mapping[str, Any]) -> None:
        if node in self._tasks:
            self._progress.update(self._tasks[node], completed=event["done"], total=event.get("total"))
        elif event.get("total") and time.monotonic() - self._said.get(node, 0.0) >= PLAIN_SECONDS:
            self._said[node] = time.monotonic()
            note = self._notes.pop(node, "")  # said once: what follows may be a measurement
            self.console.print(line(f"        {node:<20} {100 * event['done'] / event['total']:3.0f}%  {note}"))


def plan_table(plans: Sequence[NodePlan], estimates: Mapping[str, str]) -> Table:
    """The plan for people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("node", "state", "key", "estimate", "why"):
        table.add_column(column, overflow="fold" if column == "why" else "ellipsis", no_wrap=column != "why")
    for plan in plans:
        colour = COLOURS.get(plan.state.value, "white")
        state = plan.state.value + (f"@{plan.step}" if plan.step is not None else "")
        row = (plan.node.name, (state, colour), (plan.key or "")[:12], estimates.get(plan.node.name, ""), plan.reason)
        table.add_row(*(line(cell) for cell in row))
    return table


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Any list of records as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = list(rows[0]) if rows else []
    for column in names:  # only the last column may wrap: keys and addresses stay whole
        table.add_column(line(column), overflow="fold", no_wrap=column != names[-1])
    for row in rows:
        table.add_row(*(line(value if value is not None else "") for value in row.values()))
    return table
