"""The page of a rehearsal: what failed and what to do first, then every node with what was measured."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from flows.rehearsal.report import ORDER, NodeReport, RehearsalReport, name_of
from flows.report import markup, page
from flows.report.markup import Markup, Section
from stages.core.shrinking import Level

KINDS = {"passed": "ok", "failed": "damaged", "out of reach": "note", "not reached": "stale"}


def place(home: Path, profile: str, level: Level) -> Path:
    """Where the page of a rehearsal lies."""
    return home / "report" / f"rehearsal-{name_of(profile, level)}.html"


def write(report: RehearsalReport, path: Path) -> None:
    """Write the page. Raises InfraError naming it."""
    page.write(render(report), path)


def render(report: RehearsalReport) -> str:
    """The page as text."""
    counts = {state: sum(node.state == state for node in report.nodes) for state in ORDER}
    facts: list[tuple[str, Any]] = [
        ("level", report.level),
        ("result", markup.badge("passed", "ok") if report.ok else markup.badge("failed", "damaged")),
        ("made", markup.when(report.at)),
        *((state, count) for state, count in counts.items()),
    ]
    parts = (
        _failed(report),
        _nodes(report),
        _measured(report),
        _checkpoints(report),
        _forecast(report),
        _stand_ins(report),
        _sources(report),
    )
    sections = [section for section in parts if section is not None]
    if report.machine:
        facts.append(("control plane's machine", report.machine))
    header = markup.template("rehearsal_header.html", profile=report.profile, facts=facts)
    return page.document(f"Moxin: {report.profile}, rehearsal {report.level}", header, sections)


def _table(head: Sequence[str], rows: Sequence[Sequence[Markup | str]], numbers: Collection[int] = ()) -> Markup:
    """A table without the columns in which no row has anything."""
    kept = [n for n in range(len(head)) if any(row[n] not in ("", markup.NONE) for row in rows)]
    return markup.table(
        [head[n] for n in kept],
        [[row[n] for n in kept] for row in rows],
        numbers=[at for at, n in enumerate(kept) if n in numbers],
    )


def _failed(report: RehearsalReport) -> Section:
    rows = [("", fault.cause, fault.remedy or "", "") for fault in report.faults]
    for node in report.failed:
        rows += [(node.node, fault.cause, fault.remedy, "") for fault in node.faults]
        if not node.faults:
            rows.append((node.node, node.why, node.remedy, node.log))
    if not rows:
        return Section("failed", "What stands in the way", markup.paragraph("Nothing that a rehearsal can find."))
    return Section("failed", "What stands in the way", _table(("node", "cause", "what to do", "log"), rows))


def _nodes(report: RehearsalReport) -> Section:
    rows = [
        (node.node, markup.badge(node.state, KINDS[node.state]), node.why or "", node.resumed) for node in report.nodes
    ]
    body = _table(("node", "", "why", "forced stop"), rows)
    return Section("nodes", "Every node", body)


def _measured(report: RehearsalReport) -> Section | None:
    rows = [_row(node) for node in report.nodes if node.measured]
    if not rows:
        return None
    head = (
        "node", "time", "processor time", "peak memory", "of the profile's", "in", "out", "a step", "tokens/s", "loader"
    )  # fmt: skip
    note = (
        "Time: of the last attempt, after the forced stop where there was one. Peak memory: of the largest process of"
        " the stage, in main memory. A step and its tokens/s: the middle one. Loader: tokens/s at which the data of"
        " steps is made, beside them."
    )
    body = markup.join(markup.paragraph(note, "note"), _table(head, rows, numbers=range(1, 10)))
    return Section("measured", "What was measured", body)


def _row(node: NodeReport) -> tuple[Markup | str, ...]:
    assert node.measured is not None
    one = node.measured
    return (
        node.node,
        markup.duration(one.seconds),
        markup.duration(one.cpu_seconds),
        markup.size(one.peak_memory_bytes),
        markup.percent(one.peak_memory_bytes, node.memory_bytes),
        markup.size(one.bytes_in),
        markup.size(one.bytes_out),
        markup.duration(one.step_seconds[1]) if one.step_seconds else markup.NONE,
        markup.number(one.tokens_per_second[1], 0) if one.tokens_per_second else markup.NONE,
        markup.number(one.loader_tokens_per_second, 0) if one.loader_tokens_per_second else markup.NONE,
    )


def _checkpoints(report: RehearsalReport) -> Section | None:
    time, size = markup.duration, markup.size
    rows = [
        (
            node.node,
            *((size(one.bytes), time(one.pause), time(one.disk), time(one.store)) if one.bytes else [markup.NONE] * 4),
            size(one.read_bytes) if one.read else markup.NONE,
            time(one.read) if one.read else markup.NONE,
        )
        for node in report.nodes
        if node.measured and (one := node.measured.checkpoints)
    ]
    if not rows:
        return None
    head = ("node", "bytes", "pause", "to disk", "to the store", "read", "in")
    note = (
        "The most of each, of the first process. Pause: no step is taken; what else a pre-training's takes goes on"
        " beside its steps. Read: by the attempt after the forced stop, until it is loaded. An attempt that was stopped"
        " after its last step saves none after it."
    )
    body = markup.join(markup.paragraph(note, "note"), _table(head, rows, numbers=range(1, 7)))
    return Section("checkpoints", "Checkpoints", body)


def _forecast(report: RehearsalReport) -> Section | None:
    time = markup.duration
    rows = [
        (
            node.node,
            f"{time(one.seconds[1])} ({time(one.seconds[0])} to {time(one.seconds[2])})",
            f"{one.gpu_hours:,.1f}",
            f"{one.core_hours:,.2f}",
            f"{one.dollars[1]:,.2f} ({one.dollars[0]:,.2f} to {one.dollars[2]:,.2f})",
            time(one.pauses) if one.pauses else markup.NONE,
            time(one.resume) if one.resume else markup.NONE,
            time(one.stop) if one.stop else markup.NONE,
            one.basis,
        )
        for node in report.nodes
        if (one := node.forecast)
    ]
    if not rows:
        return None
    head = (
        "node", "time", "GPU-hours", "core-hours", "dollars", "checkpoint pauses", "to resume", "to stop", "by"
    )  # fmt: skip
    sums = [sum(one.seconds[i] for node in report.nodes if (one := node.forecast)) for i in (1, 0, 2)]
    note = (
        f"{len(rows)} of {len(report.nodes)} nodes, one after the other: {time(sums[0])} ({time(sums[1])} to"
        f" {time(sums[2])}). Pauses are in the time. To resume: until the next step. To stop: a step, and the last"
        " checkpoint until it is in the store; 'moxin plan' holds it against the node's grace."
    )
    body = markup.join(markup.paragraph(note, "note"), _table(head, rows, numbers=range(1, 8)))
    return Section("forecast", "What the real run takes", body)


def _stand_ins(report: RehearsalReport) -> Section | None:
    rows = [(node.node, "; ".join(node.stand_ins)) for node in report.nodes if node.stand_ins]
    if not rows:
        return None
    return Section("stand-ins", "Stand-ins", _table(("node", "what stood for what"), rows))


def _sources(report: RehearsalReport) -> Section | None:
    if not report.opened:
        return None
    return Section("sources", "Sources that gave a row", markup.items(report.opened))
