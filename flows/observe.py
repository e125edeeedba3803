"""What people see of a run in the Prefect UI: logs, progress, plan table, curves, tables. All are Prefect artifacts."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from flows import report
from flows.charts import curves_svg
from flows.execute import Outcome
from flows.plan import NodePlan
from flows.profiles import Profile
from flows.report import scores, visual
from stages.core.artifacts import ArtifactManifest
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger

PROGRESS_SECONDS = 2.0
"""Between two updates of a progress artifact: each is one request to the Prefect API."""
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def slug(name: str) -> str:
    """A node's name as an artifact key: Prefect allows lower-case letters, digits and dashes."""
    return name.replace("_", "-")


class TaskObserver:
    """Streams the events of one node into its Prefect task run. Use inside the task."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._log = get_run_logger()
        self._artifact: UUID | None = None
        self._updated = time.monotonic()
        self._metric_logged = 0.0

    def event(self, node: str, event: Mapping[str, Any]) -> None:
        """Show one event. Trouble with the UI never disturbs the run."""
        if node != self.node:
            return
        kind = event["event"]
        if kind == "log":
            self._log.log(_LEVELS.get(str(event.get("level")), logging.INFO), "%s", event["message"])
        elif kind == "metric":
            self._metric(event)
        elif kind == "progress":
            self._progress(event)
        elif kind == "checkpoint":
            self._log.info("checkpoint saved at step %s", event["step"])
        elif kind == "state":
            self._log.info("%s%s", event["state"], f": {event['message']}" if event.get("message") else "")

    def _metric(self, event: Mapping[str, Any]) -> None:
        if time.monotonic() - self._metric_logged < 1.0:
            return
        self._metric_logged = time.monotonic()
        values = "  ".join(f"{name}={value:.4g}" for name, value in event["values"].items())
        self._log.info("step %s  %s", event["step"], values)

    def _progress(self, event: Mapping[str, Any]) -> None:
        total = event.get("total")
        if not total or time.monotonic() - self._updated < PROGRESS_SECONDS:
            return
        self._updated = time.monotonic()
        percent = min(100.0, 100.0 * event["done"] / total)
        with contextlib.suppress(Exception):
            if self._artifact is None:
                made = create_progress_artifact(percent, key=f"{slug(self.node)}-progress", description=self.node)
                self._artifact = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(self._artifact, percent)

    def close(self) -> None:
        """Show the bar full at the end."""
        if self._artifact is not None:
            with contextlib.suppress(Exception):
                update_progress_artifact(self._artifact, 100.0)


def plan_table(plans: Iterable[NodePlan]) -> None:
    """The plan as a table artifact."""
    rows = [{"node": p.node.name, "state": p.state.value, "reason": p.reason, "key": (p.key or "")[:12]} for p in plans]
    create_table_artifact(table=rows, key="plan", description="What this run does with each node, and why")


def node_artifacts(ledger: Ledger, outcome: Outcome) -> None:
    """A node's statistics as a table, and its loss curve as a picture."""
    result = outcome.result
    rows = [{"name": key, "value": _text(value)} for key, value in sorted(result.stats.items())]
    attempt = result.attempt
    rows += [
        {"name": "wall seconds", "value": f"{attempt.wall_seconds:.1f}"},
        {"name": "CPU seconds", "value": f"{attempt.cpu_seconds:.1f}"},
        {"name": "peak memory, MiB", "value": f"{attempt.peak_rss_bytes / 2**20:.0f}"},
        {"name": "bytes out", "value": f"{attempt.bytes_out:,}"},
    ]
    create_table_artifact(table=rows, key=f"{slug(result.node)}-stats", description=f"{result.node}: what it did")
    for port, manifest in result.outputs.items():
        if manifest.type == "EvalReport":
            _scores(ledger, result.node, port, manifest)
    metrics = read_metrics(ledger, result.metrics_object)
    if any("loss" in row for row in metrics):
        svg = curves_svg({result.node: metrics}, title=f"{result.node}: loss")
        url = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
        create_image_artifact(image_url=url, key=f"{slug(result.node)}-loss", description=f"{result.node}: loss")


def _scores(ledger: Ledger, node: str, port: str, manifest: ArtifactManifest) -> None:
    found, problem = report.read_evaluation(ledger, f"{node}.{port}", manifest)
    if found is not None:
        create_table_artifact(table=scores.rows_of(found), key=f"{slug(node)}-scores", description=f"{node}: scores")
        if pictures := report.read_pictures(ledger, manifest):
            url = "data:image/svg+xml;base64," + base64.b64encode(visual.grid_svg(pictures).encode()).decode()
            create_image_artifact(image_url=url, key=f"{slug(node)}-pictures", description=f"{node}: question, answer, truth")
    else:
        get_run_logger().warning("%s", problem)


def read_metrics(ledger: Ledger, key: str | None) -> list[dict[str, float]]:
    """The metric rows of a result; empty if it has none."""
    found = ledger.store.get(key) if key else None
    return [json.loads(line) for line in found[0].splitlines()] if found else []


def run_report(ledger: Ledger, profile: Profile, pipeline: Pipeline, home: Path) -> Path:
    """Write the report's page, and show in short what it says; its path."""
    data = report.collect(ledger, profile.name, pipeline, profile)
    path = home / "report" / f"{profile.name}.html"
    report.write(data, path)
    if rows := scores.ablation_rows(data):
        create_table_artifact(table=rows, key="ablation", description="Original (after phase 2) against Enhanced (after phase 3), in per cent")
    lines = ["```text", *(line.replace("`", "'") for line in report.summary(data)), "```", "", f"The whole report, on the machine of this run: `{path}`"]
    create_markdown_artifact(markdown="\n".join(lines), key="run-report", description=f"Report of profile {profile.name}")
    return path


def run_summary(outcomes: Mapping[str, Outcome], failures: Mapping[str, str]) -> None:
    """The end of a run as a Markdown artifact."""
    lines = ["| node | | seconds |", "| --- | --- | ---: |"]
    lines += [
        f"| {name} | {'cached' if o.cached else 'ran'} | {o.seconds:.1f} |" for name, o in outcomes.items()
    ]
    lines += [f"| {name} | failed | |" for name in failures]
    lines += ["", *(f"- {message}" for message in failures.values())]
    create_markdown_artifact(markdown="\n".join(lines), key="run-summary", description="How the run ended")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
