"""Published results for the report: artifacts, evaluations with invented scores."""

from __future__ import annotations

import json
from typing import Any

from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.keys import artifact_digest, sha256
from stages.core.ledger import Ledger
from stages.lib.formats.reports import Aggregate, EvaluatedModel, Harness, Report, Score
from tests.support.report_pages import publish


def manifest(type: str, files: tuple[FileEntry, ...] = (), **meta: Any) -> ArtifactManifest:
    return ArtifactManifest(
        type=type, digest=artifact_digest(type, {"meta": json.dumps(meta)}, files), facets={}, meta=meta, files=files
    )


COLUMNS = {"hellaswag": "HellaSwag", "piqa": "PIQA", "arc_easy": "ARC-E", "winogrande": "WinoGrande", "mmlu": "MMLU"}


def score(task: str, value: float, stderr: float | None, **fields: Any) -> Score:
    given: dict[str, Any] = {
        "suite": "zero_shot", "metric": "acc_norm", "headline": True, "n": 100, "n_total": 100, "num_fewshot": 0,
        "data_set": "owner/set",
        "split": "test", "task_version": "1", "truncated": 0, "in_domain": False, "comparable_to_paper": True,
        "table": "table_2", "column": COLUMNS.get(task),
    }  # fmt: skip
    return Score(task=task, value=value, stderr=stderr, **(given | fields))


def evaluation(node: str, *results: Score, trained_on: tuple[str, ...] = ()) -> Report:
    mean = sum(s.value for s in results if s.headline) / sum(s.headline for s in results)
    return Report(
        model=EvaluatedModel(node=node, digest="d" * 64, parameters=1, dtype="float32", trained_on=trained_on),
        harness=Harness(name="lm-evaluation-harness", version="0.4.13"),
        seed=1234,
        results=results,
        aggregates=(Aggregate(suite="zero_shot", value=mean, stderr=0.01, tasks=len(results)),),
    )


def publish_report(ledger: Ledger, node: str, found: Report | bytes) -> str:
    """An evaluation's result; returns the object key of its report.json."""
    body = found if isinstance(found, bytes) else found.model_dump_json().encode()
    key = f"objects/evaluate/{sha256(node.encode())}/000001/report/report.json"
    ledger.store.put(key, body)
    files = (FileEntry(path="report.json", size=len(body), sha256=sha256(body), object=key),)
    publish(ledger, node, outputs={"report": manifest("EvalReport", files)})
    return key
