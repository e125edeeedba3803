"""What `flows.live.watch` sees, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from flows.console import COLOURS, rows_table
from flows.live.terminal_curve import drawn
from flows.live.watch import metric_to_draw
from flows.terminal_text import line

HEIGHT, WIDEST = 10, 100
"""Of a chart, in characters."""
ALARMS = 4
"""Newest alarms of a node that are shown."""
WAITS = ("run", "resume", "blocked", "damaged")
"""States of nodes that have a line of their own: those that run have one already, those that are done are counted."""


def view(shown: Mapping[str, Any], metric: str, width: int) -> RenderableType:
    """The states, then each running node with its curve. shown: of `Watch.snapshot`."""
    place = shown["experiment"] or shown["profile"]
    counts = [part for s, n in shown["states"].items() for part in (" ", (f"{n} {s}", COLOURS.get(s, "white")))]
    parts: list[RenderableType] = [line((place, "bold"), *counts, (f"  {shown['at'][11:19]} UTC", "dim"))]
    if not shown["running"]:
        parts.append(line(("nothing runs now", "dim")))
    keys = {row["name"]: row["key"] for row in shown["nodes"]}
    for row in shown["running"]:
        parts += _node(row, metric_to_draw(row, metric), width, other=keys.get(row["node"]) not in (row["key"], None))
    rows = [_row(row["node"], "running", row) for row in shown["running"]]
    rows += [_row(node["name"], node["state"], node) for node in shown["nodes"] if node["state"] in WAITS]
    if rows:
        parts.append(rows_table(rows))
    if pending := [node["name"] for node in shown["nodes"] if node["state"] == "pending"]:
        parts.append(line(("pending ", "blue"), (", ".join(pending), "dim")))
    return Group(*parts)


def _row(name: str, state: str, row: Mapping[str, Any]) -> dict[str, Any]:
    share = row.get("share")
    last: Mapping[str, float] = row.get("last") or {}
    values = " ".join(f"{k} {v:.4g}" for k, v in last.items() if k not in ("step", "tokens"))
    words = f"step {last['step']:,.0f} {values}" if last else row.get("message") or row.get("reason", "")
    return {"node": name, "state": state, "done": f"{100 * share:.0f}%" if share is not None else "", "": words}


def _node(row: Mapping[str, Any], metric: str, width: int, other: bool) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if not row["here"]:
        parts.append(line(f"{row['node']}: ", ("its run tells its curve on another machine", "dim")))
    if metric:
        now, before = ([(r["step"], r[metric]) for r in row[rows] if metric in r] for rows in ("rows", "former"))
        parts.append(
            line((f"{row['node']}: {metric}", "bold"), ("  in grey: the result before" if before else "", "dim"))
        )
        for label, cells in drawn([now, before], min(WIDEST, max(20, width - 12)), HEIGHT):
            text = Text(label)
            for character, owner in cells:
                text.append(character, "cyan" if owner == 0 else "bright_black")
            parts.append(text)
        steps = [step for step, _ in (*now, *before)]
        parts.append(line((f"{'':10}step {min(steps):,.0f} to {max(steps):,.0f}", "dim")))
    if row["silent_seconds"]:
        silence = f"{row['node']} has told no row for {row['silent_seconds']:.0f} s: see 'moxin logs {row['node']}'"
        parts.append(line((silence, "yellow")))
    parts += [line(("! ", "red"), (a["text"], "yellow"), f": {a['advice']}") for a in row["alarms"][-ALARMS:]]
    return parts
