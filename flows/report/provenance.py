"""What each node cost, and where each result comes from: key, inputs, code, configuration."""

from __future__ import annotations

import json
from typing import Any, cast

from flows.report.data import Data, NodeData
from flows.report.markup import (
    NONE,
    Markup,
    Section,
    badge,
    bar,
    code,
    details,
    duration,
    join,
    paragraph,
    size,
    table,
    when,
)


def costs(data: Data) -> Section | None:
    """Time, memory and bytes of each node's attempt."""
    with_result = [node for node in data["nodes"] if node["result"]]
    if not with_result:
        return None
    attempts = [node["result"]["attempt"] for node in with_result]
    longest = max(a["wall_seconds"] for a in attempts)
    rows = [_cost(node, longest) for node in with_result]
    sums = {name: sum(a[name] for a in attempts) for name in ("wall_seconds", "cpu_seconds", "bytes_in", "bytes_out")}
    foot = [
        "Sum",
        duration(sums["wall_seconds"]),
        "",
        duration(sums["cpu_seconds"]),
        _cores(sums),
        "max " + size(max(a["peak_rss_bytes"] for a in attempts)),
        size(sums["bytes_in"]),
        size(sums["bytes_out"]),
        *_money([node["use"] for node in with_result if node.get("use")]),
    ]
    head = ("Node", "Wall", "", "CPU", "Cores busy", "Peak memory", "Read", "Written", "GPU hours", "Dollars", "Energy")
    note = paragraph(
        "Of the attempt that made the result; nodes that ran at the same time are both counted. A resumed attempt"
        " counts from its checkpoint. Dollars and energy are those of infra/gpu_prices.toml, at a card's full power;"
        " nothing stands where nobody wrote down what a processor draws.",
        "note",
    )
    return Section("costs", "Costs", join(table(head, rows, numbers=(1, 3, 4, 5, 6, 7, 8, 9, 10), foot=[foot]), note))


def _cost(node: NodeData, longest: float) -> list[Any]:
    a = node["result"]["attempt"]
    share = bar(a["wall_seconds"] / longest if longest else 0)
    return [
        node["name"],
        duration(a["wall_seconds"]),
        share,
        duration(a["cpu_seconds"]),
        _cores(a),
        size(a["peak_rss_bytes"]),
        size(a["bytes_in"]),
        size(a["bytes_out"]),
        *_money([node["use"]] if node.get("use") else []),
    ]


def _money(uses: list[dict[str, Any]]) -> list[Markup | str]:
    """GPU hours, dollars and energy."""
    if not uses:
        return [NONE, NONE, NONE]
    hours, dollars = sum(use["gpu_hours"] for use in uses), sum(use["dollars"] for use in uses)
    known = [use["kwh"] for use in uses if use["kwh"] is not None]
    return [
        f"{hours:,.2f}" if hours else NONE,
        f"${dollars:,.2f}" if dollars >= 0.995 else f"${dollars:.2g}",
        f"{sum(known):,.3g} kWh" if known else NONE,
    ]


def _cores(a: dict[str, Any]) -> Markup | str:
    return f"{a['cpu_seconds'] / a['wall_seconds']:.2f}" if a["wall_seconds"] else NONE


def origins(data: Data) -> Section:
    """Key, digests and code of every result; its configuration below."""
    head = ("Node", "State", "Made", "Key", "Output", "Source", "Commit", "Run, epoch")
    rows = [_origin(node) for node in data["nodes"]]
    ids = [f"node-{node['name']}" for node in data["nodes"]]
    note = paragraph(
        "Key: what was computed (stage, revision, configuration, content of inputs). Output: digest of what came out."
        " Source: digest of the stage's code. Hover over a hash for the whole of it; moxin show and moxin lineage tell"
        " more.",
        "note",
    )
    configs = [
        details(f"Configuration of {node['name']}", _config(node["result"])) for node in data["nodes"] if node["result"]
    ]
    return Section("provenance", "Provenance", join(table(head, rows, ids=ids), note, *configs))


def _origin(node: NodeData) -> list[Any]:
    result = node["result"]
    state = badge(node["state"], node["state"])
    if not result:
        return [node["name"], state, *[None] * 6]
    outputs = Markup("<br>").join(
        Markup("%s %s") % (port, code(o["digest"], 12)) for port, o in result["outputs"].items()
    )
    attempt, source = result["attempt"], result["code"]
    run = Markup("%s, %s") % (code(attempt["run_id"], 8), attempt["epoch"])
    commit = code(source["git_commit"], 12) if source["git_commit"] else NONE
    return [
        node["name"],
        state,
        when(attempt["ended_at"]),
        code(result["key"], 12),
        outputs,
        code(source["source_digest"], 12),
        commit,
        run,
    ]


def _config(result: dict[str, Any]) -> Markup:
    rows = [
        [code(path), code(value), "" if path.split(".")[0] in result["identity"] else "not part of the key"]
        for path, value in _flat(result["config"])
    ]
    inputs = [
        [port, Markup("%s.%s") % (ref["node"], ref["port"]), code(ref["manifest"]["digest"], 12)]
        for port, refs in result["inputs"].items()
        for ref in refs
    ]
    return join(
        table(("Setting", "Value", ""), rows) if rows else None,
        table(("Input", "From", "Digest"), inputs) if inputs else None,
    )


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted settings with their values as JSON."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        path = f"{prefix}{key}"
        rows += (
            _flat(cast("dict[str, Any]", item), f"{path}.")
            if isinstance(item, dict) and item
            else [(path, json.dumps(item, ensure_ascii=False))]
        )
    return rows
