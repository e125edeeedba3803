"""What the newest `Overlap` says of a model: which items of its evaluations the data it learned from holds, and its
scores without them.

A model's training data follows from the pipeline: what its token shards were packed from, and what was wired to its
fine-tuning and to that of its parents. Training on a benchmark's training split is something else: a report says it as
`in_domain`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stages.core.artifacts import (
    Artifact,
    ArtifactManifest,
    Conversations,
    Documents,
    ImageConversations,
    Model,
    Preferences,
    Problems,
    TokenShards,
)
from stages.core.artifacts import Overlap as OverlapArtifact
from stages.core.errors import InputError
from stages.core.graph import Node, Pipeline
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.lib.evaluation.item_text import item_mark, item_text
from stages.lib.formats.overlap import FILE, ItemOverlap, Overlap, items_path, parse_items, parse_overlap
from stages.lib.formats.reports import TOY

TRAINING: tuple[type[Artifact], ...] = (Documents, Conversations, Preferences, Problems, ImageConversations)
CARRIES: tuple[type[Artifact], ...] = (Model, TokenShards)
"""Through these a model has what their makers read."""
HELD_OUT = "heldout"
"""A port of this name, on either side of an edge, is measured on, not learned from."""
SAMPLES_BYTES = 1 << 30
"""A larger file of samples is not read."""


def learned_from(pipeline: Pipeline, model: str) -> set[str]:
    """Nodes whose data a model learned from, itself or through its parents, as `node.port`."""
    sources: set[str] = set()
    seen: set[str] = set()
    waiting = [pipeline[model]]
    while waiting:
        node = waiting.pop()
        if node.name in seen:
            continue
        seen.add(node.name)
        for port, wired in node.wires.items():
            for source in wired:
                if issubclass(source.type, CARRIES):
                    waiting.append(source.node)
                elif issubclass(source.type, TRAINING) and HELD_OUT not in (port, source.port):
                    sources.add(f"{source.node.name}.{source.port}")
    return sources


def measuring_node(pipeline: Pipeline) -> Node | None:
    """The node that publishes the overlap; None: the pipeline has none."""
    ports = ((node, port) for node in pipeline for port in node.ports.values())
    return next((n for n, port in ports if port.direction == "output" and port.type is OverlapArtifact), None)


def measure(ledger: Ledger, pipeline: Pipeline, results: Mapping[str, StageResult]) -> dict[str, Any] | None:
    """What the newest overlap says of every evaluation in a view; None: the pipeline has no node that measures it.

    results: the newest of each node. Returns `{node, overlap, evaluations, problems}`; overlap: overlap.json, or None
    when it was not measured; evaluations: `{node, model, training, not_scanned, tasks}` each, a task as `_task` gives
    it. Raises InfraError when the store cannot be read.
    """
    node = measuring_node(pipeline)
    if node is None:
        return None
    data: dict[str, Any] = {"node": node.name, "overlap": None, "evaluations": [], "problems": []}
    result = results.get(node.name)
    artifact = next((a for a in result.outputs.values() if a.type == "Overlap"), None) if result else None
    if artifact is None:
        return data
    try:
        overlap = parse_overlap(_read(ledger, artifact, FILE), f"{FILE} of {node.name}")
    except InputError as error:
        return data | {"problems": [str(error)]}
    items = _Items(ledger, artifact, node.name)
    scanned = {
        f"{s.node.name}.{s.port}" for wired in node.wires.values() for s in wired if issubclass(s.type, TRAINING)
    }
    for name, evaluated in results.items():
        for report, manifest in _reports(ledger, evaluated):
            if report["model"]["node"] not in pipeline:
                continue
            training = learned_from(pipeline, report["model"]["node"])
            nodes = {source.partition(".")[0] for source in training & scanned}
            tasks, problems = _tasks(ledger, manifest, name, report, overlap, items, nodes)
            data["problems"] += problems
            data["evaluations"].append(
                {
                    "node": name,
                    "model": report["model"]["node"],
                    "training": sorted(nodes),
                    "not_scanned": sorted(training - scanned),
                    "tasks": tasks,
                }
            )
    return data | {"overlap": overlap.model_dump(mode="json")}


def _read(ledger: Ledger, artifact: ArtifactManifest, path: str) -> bytes:
    """A file of an artifact. Raises InputError when it is not there, or is another than was published."""
    entry = next((f for f in artifact.files if f.path == path), None)
    stored = ledger.store.get(entry.object) if entry else None
    if entry is None or stored is None:
        raise InputError(f"{path} of a {artifact.type} is not in the store")
    if sha256(stored[0]) != entry.sha256:
        raise InputError(f"{path} of a {artifact.type} is not what was published (another SHA-256)")
    return stored[0]


class _Items:
    """The items of an overlap, by data set and mark, each data set read once."""

    def __init__(self, ledger: Ledger, artifact: ArtifactManifest, node: str) -> None:
        self._ledger, self._artifact, self._node = ledger, artifact, node
        self._read: dict[str, dict[str, ItemOverlap]] = {}

    def of(self, data_set: str) -> dict[str, ItemOverlap] | None:
        """Items by mark; None: the overlap does not hold the data set. Raises InputError."""
        path = items_path(data_set)
        if not any(f.path == path for f in self._artifact.files):
            return None
        if data_set not in self._read:
            rows = parse_items(_read(self._ledger, self._artifact, path), f"{path} of {self._node}")
            self._read[data_set] = {row.mark: row for row in rows}
        return self._read[data_set]


def _reports(ledger: Ledger, result: StageResult) -> Iterator[tuple[dict[str, Any], ArtifactManifest]]:
    """The evaluation reports of a result, as JSON. What cannot be read is told elsewhere (`flows.report.data`)."""
    for artifact in result.outputs.values():
        if artifact.type == "EvalReport":
            try:
                yield json.loads(_read(ledger, artifact, "report.json")), artifact
            except (InputError, ValueError):
                continue


def _tasks(
    ledger: Ledger,
    artifact: ArtifactManifest,
    node: str,
    report: Mapping[str, Any],
    overlap: Overlap,
    items: _Items,
    training: set[str],
) -> tuple[list[dict[str, Any]], list[str]]:
    """The headline scores of a report, and what is wrong with those that are left out."""
    tasks: list[dict[str, Any]] = []
    problems: list[str] = []
    for score in report["results"]:
        if not score["headline"]:
            continue
        path = f"samples/{score['suite']}.{score['task']}.jsonl"
        try:
            by_mark = _items_of(items, score)
            if by_mark is None:
                problems.append(f"{node}: no suite that was looked for holds {score['data_set']} ({score['task']})")
                continue
            size = next((f.size for f in artifact.files if f.path == path), 0)
            if size > SAMPLES_BYTES:
                problems.append(f"{node}: {path} has {size:,} bytes and is not read")
                continue
            samples = _read(ledger, artifact, path).splitlines()
            tasks.append(_task(score, map(json.loads, samples), by_mark, overlap, training))
        except (InputError, ValueError) as error:
            problems.append(f"{node}: {error}")
    return tasks, problems


def _items_of(items: _Items, score: Mapping[str, Any]) -> dict[str, dict[str, ItemOverlap]] | None:
    """{data set: items by mark} of a score; None when the overlap holds none of its data sets."""
    names = [*score["data_set"].split(", "), score["task"]]
    held = {name: by_mark for name in names if (by_mark := items.of(name)) is not None}
    return held or None


def _task(
    score: Mapping[str, Any],
    samples: Iterable[Mapping[str, Any]],
    by_mark: Mapping[str, Mapping[str, ItemOverlap]],
    overlap: Overlap,
    training: set[str],
) -> dict[str, Any]:
    """One score on all, clean and dirty items. `items` counts them by category; 'unknown' are documents that no item
    is recognised in; `scores` are means over the documents of a category, of those whose metric the samples keep.
    """
    counts, kept, sums = Counter[str](), Counter[str](), defaultdict[str, float](float)
    for sample in samples:
        if sample.get("filter", "none") != score["filter"] or sample.get("sample", 0) > 0:
            continue  # another filter's, or a further program for the same problem
        category = _category(sample, by_mark, overlap, training)
        counts[category] += 1
        value = sample.get(score["metric"], sample.get("score"))
        if isinstance(value, int | float):
            for name in ("all", category):
                sums[name] += value
                kept[name] += 1
    about = {
        key: score[key] for key in ("suite", "task", "toy", "metric", "filter", "in_domain", "value", "num_fewshot")
    }
    return about | {
        "items": {"all": counts.total(), **dict(sorted(counts.items()))},
        "scores": {name: sums[name] / kept[name] for name in sorted(kept)},
    }


def _category(
    sample: Mapping[str, Any],
    by_mark: Mapping[str, Mapping[str, ItemOverlap]],
    overlap: Overlap,
    training: set[str],
) -> str:
    for data_set, items in by_mark.items():
        mark = item_mark(item_text(data_set, sample["doc"]) if "doc" in sample else str(sample.get("id")))
        if mark in items:
            return items[mark].category(overlap.rule, training)
    return "unknown"


# --- for people -----------------------------------------------------------------------------------------------------


def shown(task: Mapping[str, Any]) -> str:
    """The task's name: one of made questions never carries the benchmark's bare name."""
    return f"{TOY}{task['task']}" if task["toy"] else str(task["task"])


def rule_in_words(overlap: Mapping[str, Any]) -> str:
    """What counts as dirty."""
    rule = overlap["rule"]
    if rule["name"] == "gpt3":
        common = f"; runs in more than {rule['common']} documents are ignored" if rule["common"] else ""
        return f"dirty: shares {rule['run']} words in a row with a training document (GPT-3's rule{common})"
    return (
        f"dirty: 80 % of the words lie in spans of {rule['run']} words or more that a training document shares, but for"
        f" {rule['skips']} of them (Llama 2's rule); clean: under 20 %"
    )


def how_to_measure(measured: Mapping[str, Any] | None, profile: str) -> str:
    """The command that makes an overlap."""
    node = measured["node"] if measured else "contamination"
    return f"moxin run --profile {profile} --select {node}"


def summary(measured: Mapping[str, Any] | None, model: str, profile: str) -> list[str]:
    """A model's contamination as Markdown lines, for its card. measured: as `measure` returns it."""
    evaluations = [e for e in measured["evaluations"] if e["model"] == model] if measured else []
    tasks = [(e, task) for e in evaluations for task in e["tasks"]]
    if measured is None or measured["overlap"] is None or not tasks:
        return [f"Not measured. `{how_to_measure(measured, profile)}` does it."]
    training = sorted({node for e in evaluations for node in e["training"]})
    missing = sorted({source for e in evaluations for source in e["not_scanned"]})
    lines = [
        f"Evaluation items that the training data holds; {rule_in_words(measured['overlap'])}. Looked through:"
        f" {', '.join(training)}." + (f" Not looked through: {', '.join(missing)}." if missing else ""),
        "",
        "| task | shots | items | dirty | too short | not recognised | score, % | on clean items | on dirty items |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for _, task in tasks:
        cells = [f"{100 * s:.1f}" if (s := task["scores"].get(name)) is not None else "" for name in ("clean", "dirty")]
        items = [str(task["items"].get(name, 0)) for name in ("all", "dirty", "skipped", "unknown")]
        numbers = [str(task["num_fewshot"]), *items, f"{100 * task['value']:.1f}", *cells]
        lines.append(f"| {shown(task)} | {' | '.join(numbers)} |")
    return [
        *lines,
        "",
        "An n-gram finds copies, not paraphrases or translations. Training on a benchmark's own training split is"
        " in-domain training, which is said beside the scores.",
    ]
