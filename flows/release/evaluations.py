"""A model's scores from the reports of the run, each with the digest of its report, and as the hub's `model-index`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flows import paper
from flows.family import FamilyModel
from flows.release.lineage import REPORT
from flows.report.data import read_evaluation
from flows.tables import TABLED, not_comparable
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.records import NodeRecord
from stages.lib.formats.reports import TOY

SUITES = ("EvalSuite", "ImageSuite")
"""Artifact types that hold what is asked."""
TASK_TYPES = {"text-generation": "Text generation", "image-text-to-text": "Image-text to text"}
"""Task types of the hub, by pipeline tag."""


@dataclass(frozen=True)
class Result:
    """One score of a report. score: `stages.lib.formats.reports.Score` as JSON; printed: the paper's number, 0 to 1,
    only where the score is comparable with it; reasons: why not.
    """

    node: str
    digest: str
    harness: str
    score: Mapping[str, Any]
    reasons: tuple[str, ...]
    printed: float | None

    @property
    def name(self) -> str:
        """The task; made questions never carry the benchmark's bare name."""
        task = self.score["task"]
        return f"{TOY}{task}" if self.score["toy"] and not task.startswith(TOY) else task


@dataclass(frozen=True)
class Evaluations:
    """results: in the order of nodes and reports; pending: nodes that have not run, or not on this very model."""

    results: tuple[Result, ...]
    pending: tuple[str, ...]
    digests: Mapping[str, str]
    """Of the reports, by node."""


def read(ledger: Ledger, model: FamilyModel, digest: str, records: Mapping[str, NodeRecord]) -> Evaluations:
    """The scores of a model, of the evaluations that the family names for it. digest: the model's content.

    A report on another result of the model counts as missing. Raises ConfigError for one that cannot be read.
    """
    results: list[Result] = []
    pending: list[str] = []
    digests: dict[str, str] = {}
    for node in model.evaluations:
        stored = ledger.manifest(records[node].key, listed=True) if node in records else None
        for port, artifact in stored[0].outputs.items() if stored else ():
            if artifact.type != REPORT:
                continue
            report, problem = read_evaluation(ledger, f"{node}.{port}", artifact)
            if report is None:
                raise ConfigError(f"{problem}: run 'moxin repair', or evaluate again with --select {node} --force")
            if report["schema_version"] < TABLED or report["model"]["digest"] != digest:
                continue
            digests[node] = artifact.digest
            results += [_result(node, artifact.digest, report, score, model) for score in report["results"]]
        if node not in digests:
            pending.append(node)
    return Evaluations(tuple(results), tuple(pending), digests)


def _result(node: str, digest: str, report: Mapping[str, Any], score: Mapping[str, Any], model: FamilyModel) -> Result:
    reasons = not_comparable(score)
    harness = f"{report['harness']['name']} {report['harness']['version']}"
    table, row = paper.tables().get(score["table"] or ""), model.rows.get(score["table"] or "")
    printed = None
    if table and row and not reasons and score["headline"]:
        value = table.row(row).scores.get(score["column"])
        printed = None if value is None else value / 100
    return Result(node, digest, harness, score, reasons, printed)


def suites(ledger: Ledger, model: FamilyModel, profile: str) -> list[StageResult]:
    """The results that hold what the evaluations of a model asked, each once."""
    keys: dict[str, str] = {}
    for node in model.evaluations:
        record = ledger.node(profile, node)
        stored = ledger.manifest(record.key, listed=True) if record else None
        for refs in stored[0].inputs.values() if stored else ():
            keys |= {ref.node: ref.key for ref in refs if ref.manifest.type in SUITES}
    results = [ledger.manifest(key, listed=True) for key in keys.values()]
    return [stored[0] for stored in results if stored is not None]


def eval_results(results: Iterable[Result], pipeline_tag: str) -> list[Any]:
    """The headline scores as huggingface_hub's EvalResult. Made questions are a data set called `toy-...`: the name of
    the benchmark's own data set stands only where it was scored.
    """
    from huggingface_hub import EvalResult

    entries: list[Any] = []
    for result in results:
        score = result.score
        if not score["headline"]:
            continue
        toy = score["toy"]
        entries.append(
            EvalResult(
                task_type=pipeline_tag,
                task_name=TASK_TYPES.get(pipeline_tag),
                dataset_type=result.name if toy else score["data_set"],
                dataset_name=f"{result.name} (made by the run that made the model)" if toy else score["column"] or
                score["task"],
                dataset_config=score["data_config"],
                dataset_split=score["split"],
                metric_type=score["metric"],
                metric_name=f"{score['metric']}, {score['num_fewshot']}-shot, {result.harness}",
                metric_value=round(score["value"], 4),
                metric_args={
                    "num_fewshot": score["num_fewshot"], "filter": score["filter"], "repeats": score["repeats"],
                    "n": score["n"], "n_total": score["n_total"], "stderr": score["stderr"],
                    "comparable_to_paper": not result.reasons, "report_sha256": result.digest,
                    "data_fingerprint": score["data_fingerprint"],
                },
            )
        )  # fmt: skip
    return entries
