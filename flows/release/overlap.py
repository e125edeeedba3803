"""Contamination on a card: what the newest overlap says of this very model's training data and evaluations, or why it
says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flows import contamination
from flows.release.lineage import Lineage
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.records import NodeRecord

TYPE = "Overlap"


@dataclass(frozen=True)
class Notes:
    """lines: Markdown; digests: of the artifacts that they are from, by node."""

    lines: tuple[str, ...]
    digests: Mapping[str, str]


def read(
    ledger: Ledger, lineage: Lineage, scores: Mapping[str, str], records: Mapping[str, NodeRecord],
    pipeline: Pipeline | None = None,
) -> Notes:  # fmt: skip
    """scores: digests of the evaluation reports on this very model, by node; records: the newest of each node.

    Raises InputError for a record that cannot be read, InfraError.
    """
    if pipeline is None:
        from stages.pipeline import PIPELINE as pipeline
    node = contamination.measuring_node(pipeline)
    names = [*([node.name] if node else []), *scores]
    stored = {name: ledger.manifest(records[name].key, listed=True) for name in names if name in records}
    results = {name: one[0] for name, one in stored.items() if one is not None}
    overlap = results.get(node.name) if node else None
    measured = contamination.measure(ledger, pipeline, results)
    if measured is None or overlap is None or measured["overlap"] is None:
        return Notes(tuple(contamination.summary(measured, lineage.model.node, lineage.profile)), {})
    if other := _of_other_data(measured["overlap"]["training"], lineage.results):
        how = contamination.how_to_measure(measured, lineage.profile)
        return Notes((f"Not measured on this model's data: the overlap is of another {other}. `{how}` does it.",), {})
    digest = next(out.digest for out in overlap.outputs.values() if out.type == TYPE)
    lines = contamination.summary(measured, lineage.model.node, lineage.profile)
    named = ", ".join(f"`{one[:12]}`" for one in scores.values())
    source = f"Items are counted in `{digest[:12]}`" + (f", scores are of {named}." if named else ".")
    problems = [f"- Left out: {problem}" for problem in measured["problems"]]
    return Notes((*lines, "", source, *(["", *problems] if problems else [])), {overlap.node: digest})


def _of_other_data(scanned: list[Mapping[str, str]], results: Mapping[str, StageResult]) -> str:
    """The node whose data was looked through in another form than the model learned from; '' when there is none."""
    for row in scanned:
        result = results.get(row["node"])
        if result and row["digest"] not in {out.digest for out in result.outputs.values()}:
            return row["node"]
    return ""
