"""Contamination: which evaluation items the models' training data holds, and their scores without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows import contamination
from flows.report.data import Data, node_of
from flows.report.markup import (
    NONE,
    Markup,
    Section,
    badge,
    code,
    details,
    heading,
    items,
    join,
    paragraph,
    size,
    table,
)

HEAD = ("Task", "Shots", "Items", "Dirty", "Too short to say", "Score", "On clean items", "On dirty items", "Notes")


def section(data: Data) -> Section | None:
    """By evaluation: dirty items and the scores on clean and dirty ones; by split: which node holds how many."""
    measured = data.get("contamination")
    if measured is None:
        return None
    overlap = measured["overlap"]
    problems = Markup('<div class="warning">%s</div>') % items(measured["problems"]) if measured["problems"] else None
    if overlap is None:
        how = contamination.how_to_measure(measured, data["profile"])
        body = paragraph(Markup("Not measured. It is by %s") % code(how), "warning")
        return Section("contamination", "Contamination", join(body, problems))
    opening = paragraph(
        "Which items of the evaluations are in what a model learned from, itself or through its parents;"
        f" {contamination.rule_in_words(overlap)}. An n-gram finds copies, not paraphrases. In-domain training, on a"
        " benchmark's own training split, is no contamination and stands in the notes. Per cent."
    )
    return Section(
        "contamination",
        "Contamination",
        join(
            opening,
            _stale(data, measured["node"]),
            problems,
            *(part for each in measured["evaluations"] for part in _evaluation(each)),
            details("Items by split and training node", _splits(overlap)),
            details("What was read", _training(overlap)),
        ),
    )


def summary(data: Data) -> list[str]:
    """One line: dirty items of all evaluations, or that nothing is known."""
    measured = data.get("contamination")
    if measured is None:
        return []
    if measured["overlap"] is None:
        return [f"contamination: not measured ({contamination.how_to_measure(measured, data['profile'])})"]
    dirty = sum(split["any"] for split in measured["overlap"]["splits"])
    every = sum(split["items"] for split in measured["overlap"]["splits"])
    skipped = sum(split["skipped"] for split in measured["overlap"]["splits"])
    return [
        f"contamination: {dirty:,} of {every:,} evaluation items overlap with training data ({skipped:,} too short)"
    ]


def _stale(data: Data, name: str) -> Markup | None:
    node = node_of(data, name)
    if node is None or node["state"] in ("ok", "drift"):
        return None
    return paragraph(f"The overlap is of other data than this run's newest: {node['why']}.", "warning")


def _evaluation(each: Mapping[str, Any]) -> list[Markup | None]:
    missing = (
        paragraph(f"Not looked through, though it learned from it: {', '.join(each['not_scanned'])}.", "warning")
        if each["not_scanned"]
        else None
    )
    return [
        heading(f"{each['model']}, by {each['node']}"),
        paragraph(f"Learned from {', '.join(each['training']) or 'nothing that was looked through'}.", "note"),
        missing,
        table(HEAD, [_task(task) for task in each["tasks"]], numbers=range(1, 8)),
    ]


def _task(task: Mapping[str, Any]) -> list[Any]:
    counts, scores = task["items"], task["scores"]
    notes = [badge("in-domain", "note")] if task["in_domain"] else []
    if counts.get("unknown"):
        notes.append(badge(f"{counts['unknown']:,} items not recognised", "note"))
    if counts.get("not clean"):
        notes.append(badge(f"{counts['not clean']:,} items not clean", "note"))
    dirty = counts.get("dirty", 0)
    return [
        Markup("%s <small>%s</small>") % (contamination.shown(task), task["metric"]),
        str(task["num_fewshot"]),
        f"{counts['all']:,}",
        f"{dirty:,} ({100 * dirty / counts['all']:.1f} %)" if dirty else "0",
        f"{counts.get('skipped', 0):,}",
        f"{100 * task['value']:.1f}",
        *(f"{100 * scores[name]:.1f}" if name in scores else NONE for name in ("clean", "dirty")),
        Markup(" ").join(notes) or NONE,
    ]


def _splits(overlap: Mapping[str, Any]) -> Markup:
    rows = [
        [
            f"{split['data_set']} {split['config']}/{split['split']}" + (" (toy)" if split["toy"] else ""),
            f"{split['items']:,}",
            f"{split['any']:,}",
            f"{split['skipped']:,}",
            f"{split['only_common']:,}",
            ", ".join(f"{node} {count:,}" for node, count in split["flagged"].items()) or NONE,
            split["text"],
        ]
        for split in overlap["splits"]
    ]
    head = ("Split", "Items", "Overlap", "Too short", "Cleared as common", "By training node", "Text of an item")
    return table(head, rows, numbers=range(1, 5))


def _training(overlap: Mapping[str, Any]) -> Markup:
    rows = [
        [t["node"], t["kind"], f"{t['documents']:,}", size(t["bytes"]), f"{t['words']:,}", code(t["digest"], 12)]
        for t in overlap["training"]
    ]
    return table(("Node", "Kind", "Documents", "Text", "Words", "Digest"), rows, numbers=(2, 3, 4))
