"""The head of the page, and the DAG as a picture with each node's state and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from flows.plan import ADOPTED
from flows.report.data import Data, NodeData
from flows.report.markup import Markup, Section, badge, code, duration, figure, items, template, when

WIDTH, HEIGHT, GAP_X, GAP_Y = 158, 40, 14, 26
"""Of a node's box, and between boxes, in the picture's units."""
STATES = {
    "ok": "up to date",
    "drift": "made by other code than is here now",
    "changed": "made with other settings, or by another revision of its stage",
    "stale": "made from another input than the newest",
    "damaged": "its objects are gone from the store",
    "missing": "no result",
}


def header(data: Data, short: Sequence[str]) -> Markup:
    """Title, what was run when and on what, the results in short, and what is not as it should be."""
    with_result = [node for node in data["nodes"] if node["result"]]
    attempts = [node["result"]["attempt"] for node in with_result]
    commits = Counter(node["result"]["code"]["git_commit"] or "unknown" for node in with_result)
    rows: list[tuple[str, Markup | str]] = [("Profile", data["profile"])]
    if attempts:
        first, last = min(a["started_at"] for a in attempts), max(a["ended_at"] for a in attempts)
        wall, cpu = sum(a["wall_seconds"] for a in attempts), sum(a["cpu_seconds"] for a in attempts)
        rows += [
            (
                "Results made",
                f"{first[:10]} {first[11:16]} to {last[11:16] if last[:10] == first[:10] else when(last)[:16]} UTC",
            ),
            ("Commit", Markup(", ").join(_commit(c, n, len(commits)) for c, n in commits.most_common())),
            ("Machine", Markup("; ").join(sorted({_machine(a["machine"]) for a in attempts}))),
            ("Time of all stages", f"{duration(wall)} wall, one after the other; {duration(cpu)} CPU"),
        ]
    rows += [
        ("Nodes", _states(data["nodes"])),
        *(
            ("Adopted", f"{node['name']}: {node['why']}")
            for node in data["nodes"]
            if node["result"] and node["result"]["stage"] == ADOPTED
        ),
        ("Report written", Markup("%s by commit %s") % (when(data["made"]), code(data["commit"] or "unknown", 12))),
    ]
    problems = items(warnings(data)) if warnings(data) else None
    return template("header.html", facts=rows, warnings=problems, short=items(short) if short else None)


def _commit(commit: str, nodes: int, different: int) -> Markup:
    return code(commit, 12) if different == 1 else Markup("%s (%s nodes)") % (code(commit, 12), nodes)


def _machine(machine: dict[str, str | int]) -> str:
    return ", ".join(
        f"{value} cores" if name == "cores" else f"Python {value}" if name == "python" else str(value)
        for name, value in machine.items()
    )


def _states(nodes: list[NodeData]) -> Markup:
    counts = Counter(node["state"] for node in nodes)
    return Markup(" ").join(badge(f"{counts[state]} {state}", state) for state in STATES if counts[state])


def faults(data: Data) -> list[tuple[str, str, list[str]]]:
    """State, reason and nodes of all that is not up to date."""
    nodes_by_fault: dict[tuple[str, str], list[str]] = {}
    for node in data["nodes"]:
        if node["state"] != "ok":
            nodes_by_fault.setdefault((node["state"], node["why"]), []).append(node["name"])
    return [(state, why, names) for (state, why), names in nodes_by_fault.items()]


def warnings(data: Data) -> list[Markup | str]:
    """Every node that is missing, stale, drifted or damaged, and every trouble of reading, said plainly."""
    lines: list[Markup | str] = [
        Markup("%s %s: %s") % (badge(state, state), Markup(", ").join(code(name) for name in names), why)
        for state, why, names in faults(data)
    ]
    return lines + [problem for node in data["nodes"] for problem in node["problems"]]


def summary(data: Data) -> list[str]:
    """How many nodes have results, and what is wrong with the others."""
    nodes = data["nodes"]
    with_result = [node for node in nodes if node["result"]]
    wall = sum(node["result"]["attempt"]["wall_seconds"] for node in with_result)
    lines = [
        f"profile {data['profile']}: {len(with_result)} of {len(nodes)} nodes have a result, made in {duration(wall)} "
        "of stage"
        " time"
    ]
    lines += [f"  {state}: {', '.join(names)}: {why}" for state, why, names in faults(data)]
    return lines + [f"  {problem}" for node in nodes for problem in node["problems"]]


# --- the picture ----------------------------------------------------------------------------------------------------


def layers(nodes: list[NodeData]) -> list[list[str]]:
    """Names in rows: a node stands below all that it reads from, and no higher than its readers need; within a row,
    near the middle of its parents.
    """
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node["name"]] = 1 + max((depth[parent] for parent in node["parents"]), default=-1)
    for node in reversed(nodes):
        if readers := [depth[other["name"]] for other in nodes if node["name"] in other["parents"]]:
            depth[node["name"]] = min(readers) - 1
    rows: list[list[str]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    parents = {node["name"]: node["parents"] for node in nodes}
    place: dict[str, float] = {}
    for node in nodes:
        rows[depth[node["name"]]].append(node["name"])
    for row in rows:
        row.sort(key=lambda name: sum(place[p] for p in parents[name]) / max(1, len(parents[name])))  # stable
        place.update({name: index - (len(row) - 1) / 2 for index, name in enumerate(row)})
    return rows


def graph(data: Data) -> Section:
    """The DAG."""
    rows = layers(data["nodes"])
    widest = max((len(row) for row in rows), default=1)
    width, height = widest * (WIDTH + GAP_X) + GAP_X, len(rows) * (HEIGHT + GAP_Y) + GAP_Y // 2
    place = {
        name: (width / 2 + (index - len(row) / 2) * (WIDTH + GAP_X) + GAP_X / 2, 6 + level * (HEIGHT + GAP_Y))
        for level, row in enumerate(rows)
        for index, name in enumerate(row)
    }
    svg = template(
        "dag.svg",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        edges=[_edge(place[parent], place[node["name"]]) for node in data["nodes"] for parent in node["parents"]],
        boxes=[_box(node, *place[node["name"]]) for node in data["nodes"]],
    )
    legend = Markup(" ").join(
        Markup("%s %s") % (badge(s, s), text)
        for s, text in STATES.items()
        if any(n["state"] == s for n in data["nodes"])
    )
    return Section("dag", "The pipeline", figure(svg, Markup("Wall time of each node. %s") % legend))


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    """The path from the bottom of one box to the top of another."""
    x1, y1, x2, y2 = start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1]
    bend = min(40.0, (y2 - y1) / 1.6)
    return f"M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"


def _box(node: NodeData, x: float, y: float) -> dict[str, Any]:
    """What the template draws of a node. x, y: upper left corner, in the picture's units."""
    time = duration(node["result"]["attempt"]["wall_seconds"]) if node["result"] else "no result"
    return {
        "name": node["name"],
        "state": node["state"],
        "label": time if node["state"] in ("ok", "missing") else f"{time}, {node['state']}",
        "hover": f"{node['name']} (stage {node['stage']}): {node['about']} {node['why']}".strip(),
        "x": f"{x:.0f}",
        "y": f"{y:.0f}",
        "width": WIDTH,
        "height": HEIGHT,
        "middle": f"{x + WIDTH / 2:.0f}",
        "name_y": f"{y + 17:.0f}",
        "time_y": f"{y + 32:.0f}",
    }
