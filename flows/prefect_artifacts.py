"""What people see of a run in the Prefect UI: logs, progress, plan table, curves, tables. All are Prefect artifacts.

A Prefect server that is slow, broken or gone disturbs no run: calls of its API wait in a queue (`ApiCallQueue`),
whose thread nobody waits for longer than a bounded time.
"""

from __future__ import annotations

import base64
import contextvars
import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_run_logger

from flows import report, run_page, spending, table_formats
from flows.charts import panels_svg
from flows.execute import Outcome
from flows.live.curve_alarms import Alarm, alarms_of
from flows.live.curves import Curves, panels_of
from flows.log_lines import metric_rows
from flows.pacing import (
    METRIC_SECONDS,
    PICTURE_LONGEST,
    PICTURE_SECONDS,
    PICTURE_SHARE,
    PROGRESS_SECONDS,
    Budget,
    Spacing,
)
from flows.plan import NodePlan
from flows.profiles import Profile
from flows.report import ablation, paper_tables, scores, vision_tables
from flows.spending import NodeCost
from stages.core.artifacts import ArtifactManifest
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def slug(name: str) -> str:
    """A node's name as an artifact key: Prefect allows lower-case letters, digits and dashes."""
    return name.replace("_", "-")


class ApiCallQueue:
    """Calls of the Prefect API, made one after the other in a thread of their own. What fails is counted, and told
    once.
    """

    WAITING = 200
    """Calls that may wait. What comes on top of them is dropped, and counted."""
    CLOSE_SECONDS, INTERRUPTED_SECONDS = 20.0, 5.0
    """How long the end of a run, and of one that was interrupted, waits for the calls that are left."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[contextvars.Context, Callable[[], object]]] = {}
        self._ready = threading.Condition()
        self._running = self._closed = False
        self._failed = self._dropped = 0
        self._first = ""

    def put(self, key: str, call: Callable[[], object]) -> None:
        """Leave a call in the present Prefect context. One with the same key that still waits is replaced. Returns at
        once.
        """
        with self._ready:
            if self._closed or (len(self._calls) >= self.WAITING and key not in self._calls):
                self._dropped += 1
                return
            self._calls[key] = (contextvars.copy_context(), call)
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="moxin Prefect API calls", daemon=True).start()

    def close(self, seconds: float | None = None) -> str | None:
        """Wait for the calls that are left, within bounds. Returns one line about what the UI lacks, if
        anything. A run must not end without it: a picture that is drawn while Python ends aborts the process.
        """
        with self._ready:
            self._ready.wait_for(lambda: not self._running, self.CLOSE_SECONDS if seconds is None else seconds)
            self._closed = True
            late = len(self._calls) + self._running
            self._calls.clear()
        if not self._failed + self._dropped + late:
            return None
        why = self._first or "the Prefect server does not answer"
        return (
            f"the Prefect UI lacks {self._failed + self._dropped + late} tables, pictures or bars of this run ({why});"
            " the results are not touched"
        )

    def _work(self) -> None:
        while True:
            with self._ready:
                if not self._calls:
                    self._running = False
                    self._ready.notify_all()
                    return
                key = next(iter(self._calls))
                context, call = self._calls.pop(key)
            try:
                context.run(call)
            except Exception as error:
                self._failed += 1
                self._first = self._first or short(error)


def short(error: BaseException) -> str:
    """An error of a client library in one short line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__


class CurvePicture:
    """The curves of one node as a picture on its run's page, which is drawn anew as they grow: one artifact a task."""

    def __init__(self, node: str, api_calls: ApiCallQueue, former: Callable[[], Sequence[Mapping[str, float]]]) -> None:
        """former: reads the rows of the node's result before; asked once, with the first picture."""
        self.node, self._api_calls = node, api_calls
        self._read_former, self._former = former, None
        self._artifact: UUID | None = None

    def show(self, rows: Sequence[Mapping[str, float]], alarms: Sequence[Alarm]) -> None:
        """Draw these rows, unless newer ones come before it is their turn. Returns at once."""
        self._api_calls.put(f"curves {self.node}", lambda: self._show(rows, list(alarms)))

    def _show(self, rows: Sequence[Mapping[str, float]], alarms: Sequence[Alarm]) -> None:
        panels = panels_of(rows)
        if not panels:
            return
        if self._former is None:
            self._former = self._read_former()
        marks: dict[str, list[float]] = {}
        for alarm in alarms:
            marks.setdefault(alarm.metric, []).append(alarm.step)
        svg = panels_svg(rows, panels, self.node, self._former, marks)
        url = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
        about = "\n".join(
            [f"{self.node}, to step {rows[-1]['step']:,.0f}", *(f"- {a.text}: {a.advice}" for a in alarms)]
        )
        if self._artifact is None:
            artifact = create_image_artifact(image_url=url, key=f"{slug(self.node)}-curves", description=about)
            self._artifact = artifact if isinstance(artifact, UUID) else None
        else:
            with get_client(sync_client=True) as client:
                client.update_artifact(self._artifact, ArtifactUpdate(data=url, description=about))


class TaskObserver:
    """Streams the events of one node into its Prefect task run. Make it inside the task."""

    def __init__(
        self, node: str, api_calls: ApiCallQueue, former: Callable[[], Sequence[Mapping[str, float]]] = tuple
    ) -> None:
        """former: reads the metric rows of the node's result before, over which the new curves are drawn."""
        self.node, self._api_calls = node, api_calls
        self.picture, self._curves = CurvePicture(node, api_calls, former), Curves()
        self._pictures = Spacing(PICTURE_SECONDS, PICTURE_SHARE, PICTURE_LONGEST)
        self._log = get_run_logger()
        self._artifact: UUID | None = None
        self._lines, self._metrics, self._bars = Budget(), Spacing(METRIC_SECONDS), Spacing(PROGRESS_SECONDS)
        self._bars.due()  # a node that ends at once needs no bar

    def event(self, node: str, event: Mapping[str, Any]) -> None:
        """Show one event."""
        kind = event["event"]
        if kind == "log":
            self._line(_LEVELS.get(str(event.get("level")), logging.INFO), str(event["message"]))
        elif kind == "metric":
            self._metric(event)
        elif kind == "progress":
            self._progress(event)
        elif kind == "checkpoint":
            self._line(logging.INFO, f"checkpoint saved at step {event['step']}")
        elif kind == "state":
            self._log.info("%s%s", event["state"], f": {event['message']}" if event.get("message") else "")
            if event["state"] in ("done", "failed", "stopped"):
                self._end()

    def _end(self) -> None:
        if self._artifact is not None:
            self._show(100.0)  # a bar that stands still at less looks as if something went on
        if self._curves.rows:
            self.picture.show(self._curves.rows, self._curves.alarms)

    def _line(self, level: int, message: str) -> None:
        if not self._log.isEnabledFor(level):
            return
        if self._lines.takes():
            self._log.log(level, "%s", message)
        elif self._lines.dropped == 1:
            self._log.warning("too many lines for this page; 'moxin logs %s' has them all", self.node)

    def _metric(self, event: Mapping[str, Any]) -> None:
        for alarm in self._curves.add(int(event["step"]), event["values"]):
            self._line(logging.WARNING, f"{alarm.text}. {alarm.advice}")
        if self._pictures.due():
            self.picture.show(self._curves.rows, self._curves.alarms)
        if not self._metrics.due():
            return
        values = "  ".join(f"{name}={value:.4g}" for name, value in event["values"].items())
        self._log.info("step %s  %s", event["step"], values)

    def _progress(self, event: Mapping[str, Any]) -> None:
        total = event.get("total")
        if not total or not self._bars.due():
            return
        self._show(min(100.0, 100.0 * event["done"] / total))

    def _show(self, percent: float) -> None:
        def call() -> None:
            if self._artifact is None:
                artifact = create_progress_artifact(percent, key=f"{slug(self.node)}-progress", description=self.node)
                self._artifact = artifact if isinstance(artifact, UUID) else None
            else:
                update_progress_artifact(self._artifact, percent)

        self._api_calls.put(f"progress {self.node}", call)


def plan_table(plans: Iterable[NodePlan]) -> None:
    """The plan as a table artifact."""
    create_table_artifact(table=run_page.plan_rows(plans), key="plan", description=run_page.PLAN_ABOUT)


def budget_table(rows: Sequence[NodeCost]) -> None:
    """What each node of a run with a budget would cost."""
    create_table_artifact(table=spending.table(rows), key="budget", description="What each node would cost")


def sweep_table(name: str, rows: Sequence[Mapping[str, str]]) -> None:
    """The points of a sweep, and what became of each so far. Nothing depends on it: its trouble is told alone."""
    try:
        create_table_artifact(table=[dict(row) for row in rows], key=f"sweep-{slug(name)}", description=f"Sweep {name}")
    except Exception as error:  # of Prefect's client, of many kinds
        get_run_logger().warning("the sweep's table is not on its page: %s", short(error))


def node_artifacts(ledger: Ledger, outcome: Outcome, picture: CurvePicture) -> None:
    """A node's statistics as a table, and its whole curves in the picture that was drawn while they grew."""
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
    metrics = metric_rows(ledger.store, result.metrics_object)
    if metrics:
        picture.show(metrics, alarms_of(metrics))


def _scores(ledger: Ledger, node: str, port: str, manifest: ArtifactManifest) -> None:
    evaluation, problem = report.read_evaluation(ledger, f"{node}.{port}", manifest)
    if evaluation is not None:
        create_table_artifact(
            table=scores.rows_of(evaluation), key=f"{slug(node)}-scores", description=f"{node}: scores"
        )
        if pictures := report.read_pictures(ledger, manifest):
            url = "data:image/svg+xml;base64," + base64.b64encode(vision_tables.grid_svg(pictures).encode()).decode()
            create_image_artifact(
                image_url=url, key=f"{slug(node)}-pictures", description=f"{node}: question, answer, truth"
            )
    else:
        get_run_logger().warning("%s", problem)


def run_report(ledger: Ledger, profile: Profile, pipeline: Pipeline, home: Path, api_calls: ApiCallQueue) -> Path:
    """Write the report's page, and queue the artifacts that summarise it; returns its path."""
    data = report.collect(ledger, profile.names, pipeline, profile)
    path = home / "report" / f"{profile.names}.html"
    report.write(data, path, home / "pictures")
    api_calls.put("report", lambda: _show_report(data, path, profile))
    return path


def _show_report(data: dict[str, Any], path: Path, profile: Profile) -> None:
    if rows := ablation.ablation_rows(data):
        create_table_artifact(
            table=rows,
            key="ablation",
            description="Original (after phase 2) against Enhanced (after phase 3), in per cent",
        )
    for table in paper_tables.built(data)[0]:
        if not table.empty:
            create_table_artifact(
                table=table_formats.plain_rows(table),
                key=f"paper-table-{table.printed.number}",
                description="\n".join([table_formats.title(table), "", *table_formats.notes(table, profile.names)]),
            )
    lines = [
        "```text",
        *(line.replace("`", "'") for line in report.summary(data)),
        "```",
        "",
        f"The whole report, on the machine of this run: `{path}`",
    ]
    create_markdown_artifact(
        markdown="\n".join(lines), key="run-report", description=f"Report of profile {profile.names}"
    )


def run_summary(outcomes: Mapping[str, Outcome], failures: Mapping[str, str]) -> None:
    """The end of a run as a Markdown artifact."""
    text = run_page.summary(outcomes, failures)
    create_markdown_artifact(markdown=text, key="run-summary", description=run_page.SUMMARY_ABOUT)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
