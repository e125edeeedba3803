"""What a report is made of: the newest result of every node, read from the ledger into plain JSON values.

Nothing is computed here that a manifest does not say, and nothing is filled in: a node without a result has `result:
None`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from flows import contamination, cost
from flows.log_lines import metric_rows
from flows.plan import differences, origin
from flows.profiles import Profile
from flows.release import energy
from flows.stage_job import git_commit
from stages.core.artifacts import ArtifactManifest
from stages.core.errors import InputError
from stages.core.graph import Node, Pipeline
from stages.core.keys import sha256, source_digest
from stages.core.ledger import Ledger
from stages.core.messages import InputRef, StageResult
from stages.core.records import NodeRecord, now
from stages.core.store_errors import Damaged
from stages.lib.formats.reports import FILE, parse_report

SCHEMA = 1
"""Version of the collected data, as `moxin report --json` prints it."""
PICTURES = "pictures.json"
"""Listing of the pictures in an EvalReport of images (stages/evaluate_vlm)."""
SAMPLES = 3
"""Documents of each task of an evaluation that are read, the first ones: the same for every model."""
SAMPLES_BYTES = 64_000_000
"""A larger file of samples is not read."""
READERS = 8
"""Nodes that are read at the same time: most of it is waiting for the store."""
OLD = ("changed", "stale")
"""States of a result that a run would make anew: whatever was made from it is stale."""
SETTINGS = 4
"""Settings that differ, named one by one."""

Data = dict[str, Any]
"""What `collect` returns."""
NodeData = dict[str, Any]
"""One of its nodes."""


def collect(
    ledger: Ledger,
    profile: str,
    pipeline: Pipeline | None = None,
    values: Profile | None = None,
    records: Mapping[str, NodeRecord] | None = None,
) -> Data:
    """Read the newest result of each node of a profile, or those that `records` name. The default pipeline is the
    paper's. With `values`, a result of other settings than those is told apart too.

    Returns `{schema_version, profile, made, commit, nodes: [node], contamination}`; the last as
    `flows.contamination.measure` gives it. A node is `{name, stage, about, parents, state,
    why, at, run_id, result, reports, use, pictures, problems}`; `use` is what it cost by
    `flows.release.energy`, where a profile says on what it ran; its `result` is the manifest as JSON with `metrics`
    (rows) beside it, and `reports` maps an output port to the `stages.lib.formats.reports.Report` in it. Raises
    InfraError, and InputError for a damaged manifest.
    """
    if pipeline is None:
        from stages.pipeline import PIPELINE as pipeline
    records = ledger.nodes(profile) if records is None else records
    prices = cost.prices_of(values) if values is not None else None
    results: dict[str, StageResult] = {}
    nodes: list[NodeData] = []
    with ThreadPoolExecutor(READERS) as threads:
        stored = list(threads.map(partial(_read, ledger, records), pipeline))
    for node, parts in zip(pipeline, stored, strict=True):
        given = values is not None and node.name in values.settings.adopt
        node = node.given() if given else node
        configured = values.configs[node.name].identity() if values and not given else None
        row = _node(node, records.get(node.name), parts, results, configured)
        if values is not None and prices is not None and node.name in results and not given:
            row["use"] = asdict(energy.use(results[node.name], values.resources[node.name], prices))
        parents = [each for each in nodes if each["name"] in node.parents and each["state"] in OLD]
        if row["state"] in ("ok", "drift") and parents:
            row |= {"state": "stale", "why": f"follows {parents[0]['name']}, which is {parents[0]['state']}"}
        nodes.append(row)
    overlaps = contamination.measure(ledger, pipeline, results)
    about = {"schema_version": SCHEMA, "profile": profile, "made": now(), "commit": git_commit()}
    return about | {"nodes": nodes, "contamination": overlaps}


def collect_scores(ledger: Ledger, pipeline: Pipeline, records: Mapping[str, NodeRecord]) -> Data:
    """Of what `collect` returns that from which tables of scores are made: `{nodes: [{name, reports, problems,
    result}]}`. records: of the nodes that evaluate; the others have no result then.
    """

    def read(node: Node) -> NodeData:
        row: NodeData = {"name": node.name, "reports": {}, "problems": [], "result": None}
        result, _ = _result(ledger, records.get(node.name))
        if result is None:
            return row
        reports, problems = _reports(ledger, node.name, result)
        return row | {"reports": reports, "problems": problems, "result": result.model_dump(mode="json")}

    with ThreadPoolExecutor(READERS) as threads:
        return {"nodes": list(threads.map(read, pipeline))}


@dataclass(frozen=True)
class _Stored:
    """What the store has of a node. why: why its result cannot be read; fields: those of its row that are read."""

    result: StageResult | None = None
    why: str = ""
    metrics: Sequence[Mapping[str, float]] = ()
    lost: Sequence[str] = ()
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _read(ledger: Ledger, records: Mapping[str, NodeRecord], node: Node) -> _Stored:
    """Read the newest result of a node, with all that a report shows of it."""
    result, why = _result(ledger, records.get(node.name))
    if result is None:
        return _Stored(why=why)
    reports, problems = _reports(ledger, node.name, result)
    row: NodeData = {"pictures": [], "samples": [], "samples_left_out": []}
    for port, artifact in result.outputs.items():
        if artifact.type == "EvalReport":
            row["pictures"] += read_pictures(ledger, artifact)
            samples, left_out, damaged = read_samples(ledger, f"{node.name}.{port}", artifact)
            row["samples"] += samples
            row["samples_left_out"] += left_out
            problems += damaged
    metrics, lost = metric_rows(ledger.store, result.metrics_object), ledger.missing_objects(result)
    return _Stored(result, "", metrics, lost, row | {"reports": reports, "problems": problems})


def _result(ledger: Ledger, record: NodeRecord | None) -> tuple[StageResult | None, str]:
    """The result that a record names, and why it cannot be read; "": there is none."""
    try:
        manifest = ledger.manifest(record.key, listed=True) if record else None
    except Damaged as error:
        return None, str(error)
    return manifest[0] if manifest else None, ""


def _reports(ledger: Ledger, name: str, result: StageResult) -> tuple[dict[str, Any], list[str]]:
    """The evaluation reports of a result by port, and what is wrong with others."""
    reports: dict[str, Any] = {}
    problems: list[str] = []
    for port, artifact in result.outputs.items():
        if artifact.type == "EvalReport":
            evaluation, problem = read_evaluation(ledger, f"{name}.{port}", artifact)
            problems += [problem] if problem else []
            reports |= {port: evaluation} if evaluation else {}
    return reports, problems


def _node(
    node: Node,
    record: NodeRecord | None,
    stored: _Stored,
    results: dict[str, StageResult],
    configured: dict[str, Any] | None,
) -> NodeData:
    """One node; `results` holds those of the nodes before it, and gains this one; `configured` is its configuration
    now.
    """
    about = (type(node).__doc__ or "").strip().splitlines()
    row: NodeData = {
        "name": node.name,
        "stage": node.stage,
        "about": about[0] if about else "",
        "parents": list(node.parents),
        "at": record.at if record else None,
        "run_id": record.run_id if record else None,
        "result": None,
        "reports": {},
        "use": None,
        "pictures": [],
        "samples": [],
        "samples_left_out": [],
        "problems": [],
    }
    if stored.why:
        return row | {"state": "damaged", "why": stored.why}
    if stored.result is None:
        why = "never ran in this profile" if record is None else "its last result is gone from the store"
        return row | {"state": "missing", "why": why}
    result = results[node.name] = stored.result
    row |= stored.fields
    row["stage"] = result.stage if origin(result) else node.stage
    row["result"] = result.model_dump(mode="json") | {"metrics": list(stored.metrics)}
    state, why = _state(node, stored, result, results, configured)
    return row | {"state": state, "why": why}


def _state(
    node: Node,
    stored: _Stored,
    result: StageResult,
    results: Mapping[str, StageResult],
    configured: dict[str, Any] | None,
) -> tuple[str, str]:
    """Whether a result is what a run would make now: ok, drift, changed, stale or damaged, and in words why."""
    if lost := stored.lost:
        return "damaged", f"{len(lost)} of its objects are gone from the store (first: {lost[0]})"
    for port, refs in result.inputs.items():
        for ref in refs:
            if not is_newest(ref, results):
                return "stale", f"its input {port} came from another result of {ref.node} than the newest"
    if place := origin(result):
        return ("ok" if configured is None else "changed"), f"adopted from {place}"
    changed = differences("", result.identity, configured) if configured is not None else []
    if result.revision != node.revision:
        return "changed", f"made by revision {result.revision} of stage {node.stage}, which is now {node.revision}"
    if changed:
        more = [f"and {len(changed) - SETTINGS} more"] if len(changed) > SETTINGS else []
        return "changed", f"made with other settings than the profile has: {'; '.join([*changed[:SETTINGS], *more])}"
    if result.code.source_digest != source_digest(node.stage):
        return "drift", f"the code of stage {node.stage} changed since"
    return "ok", ""


def is_newest(ref: InputRef, results: Mapping[str, StageResult]) -> bool:
    """Whether what a result was made from is what its producer has now. results: the newest, by node."""
    producer = results.get(ref.node)
    newest = producer.outputs.get(ref.port) if producer else None
    return newest is not None and newest.digest == ref.manifest.digest


def read_evaluation(ledger: Ledger, where: str, artifact: ArtifactManifest) -> tuple[dict[str, Any] | None, str]:
    """The `stages.lib.formats.reports.Report` of an EvalReport as JSON, or None and what is wrong with it. where:
    `node.port`.
    """
    entry = next((f for f in artifact.files if f.path == FILE), None)
    stored = ledger.store.get(entry.object) if entry else None
    if entry is None or stored is None:
        return None, f"{where}: its {FILE} is not in the store"
    if sha256(stored[0]) != entry.sha256:
        return None, f"{where}: its {FILE} is not what was published (another SHA-256)"
    try:
        return parse_report(stored[0], f"{FILE} of {where}").model_dump(mode="json"), ""
    except InputError as error:  # of another version: the rest of the run can still be told
        return None, str(error)


def read_pictures(ledger: Ledger, artifact: ArtifactManifest) -> list[dict[str, Any]]:
    """The questions with pictures that an EvalReport of images keeps, each with its picture as a data address; else
    none.
    """
    entries = {f.path: f for f in artifact.files}
    listing = ledger.store.get(entries[PICTURES].object) if PICTURES in entries else None
    rows: list[dict[str, Any]] = []
    for row in json.loads(listing[0]) if listing else ():
        stored = ledger.store.get(entries[row["file"]].object) if row["file"] in entries else None
        if stored is not None:
            rows.append(row | {"picture": "data:image/jpeg;base64," + base64.b64encode(stored[0]).decode()})
    return rows


def read_samples(
    ledger: Ledger, where: str, artifact: ArtifactManifest
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """The first rows of every task's `samples/<suite>.<task>.jsonl`, each with its `suite` and `group` (that task),
    the files that are too large to be read, and what is wrong with others. where: `node.port`.
    """
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    problems: list[str] = []
    for entry in artifact.files:
        suite, _, group = entry.path.removeprefix("samples/").removesuffix(".jsonl").partition(".")
        if not (entry.path.startswith("samples/") and group):
            continue
        if entry.size > SAMPLES_BYTES:
            left_out.append(f"{where}/{entry.path}")
            continue
        stored = ledger.store.get(entry.object)
        if stored is None or sha256(stored[0]) != entry.sha256:
            problems.append(f"{where}: its {entry.path} is {'not in the store' if stored is None else 'damaged'}")
            continue
        lines = stored[0].split(b"\n", SAMPLES)[:SAMPLES]
        rows += [json.loads(line) | {"suite": suite, "group": group} for line in lines if line.strip()]
    return rows, left_out, problems


# --- reading it -----------------------------------------------------------------------------------------------------


def node_of(data: Data, name: str) -> NodeData | None:
    """The node of that name; None when the pipeline has none."""
    return next((node for node in data["nodes"] if node["name"] == name), None)


def report_of(data: Data, name: str) -> dict[str, Any] | None:
    """The evaluation report that a node published; None when it has none."""
    node = node_of(data, name)
    return next(iter(node["reports"].values()), None) if node else None


def pictures_of(data: Data, name: str) -> list[dict[str, Any]]:
    """The questions with pictures that a node published; empty when it has none."""
    node = node_of(data, name)
    return node["pictures"] if node else []


def nodes_of(data: Data, *stages: str) -> Iterator[NodeData]:
    """The nodes of the given stages that have a result, in pipeline order."""
    return (node for node in data["nodes"] if node["stage"] in stages and node["result"])
