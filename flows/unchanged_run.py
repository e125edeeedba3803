"""A run that finds every node done: carried out without Prefect's client, and as visible in its pages as any other.

Each node is answered from the ledger as the flow does it (`Execution.node`). What may need a stage, a person or a
budget is left to the flow, and so is the telling of what cannot be planned.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flows import experiments, garbage_collection, lost_runs, run_page
from flows.event_dispatch import Observer
from flows.execute import Execution, Outcome
from flows.experiments.naming import BY, user
from flows.local_services import prefect
from flows.plan import NodePlan, answered, make_plan
from flows.profiles import Profile
from flows.recorded_run import RecordedRun, spoken_by
from flows.run_setup import execution_of
from flows.settings import Settings
from stages.core.errors import InfraError, StageError
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from stages.core.store import Store

THREADS = 8
"""Nodes that are answered at the same time: each moves its name in the store."""
DEFAULTS: Mapping[str, Any] = {
    "profile": "tiny", "select": "full", "force": False, "fields": {}, "set": [], "experiment": "", "why": "",
    "plan_only": False, "budget": None, "approve": False, "restarts": 0,
}  # fmt: skip
"""The flow's parameters and what they are where nobody says otherwise (`flows.flow.moxin`): a page shows them all."""


@dataclass(frozen=True)
class Ended:
    """How a run ended. url: its page; trouble: why the Prefect server does not know all of it."""

    ok: bool
    message: str
    url: str
    trouble: str = ""


@dataclass
class UnchangedRun:
    """A planned run of whose nodes each has its result."""

    settings: Settings
    values: Profile
    ledger: Ledger
    plans: list[NodePlan]
    parameters: Mapping[str, Any]
    _took: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def carry_out(self, observers: Sequence[Observer]) -> Ended:
        """Answer every node and tell Prefect. Raises InfraError where the server takes no run."""
        call = partial(prefect.call_api, self.settings)
        tags = [lost_runs.tag(), f"{BY}{user()}"]
        page = RecordedRun(call, run_page.run_name(self.parameters), self.parameters, tags)
        url = f"{self.settings.prefect_ui_url}/runs/flow-run/{page.id}"
        try:
            for warning in self.values.warnings:
                page.log(warning, logging.WARNING)
            for plan in self.plans:
                page.log(run_page.plan_line(plan))
            execution = execution_of(
                page.id, self.values, self.ledger, self.settings, self.plans, force=False, observers=observers
            )
            for line in garbage_collection.collect(self.settings.home, self.ledger):
                page.log(line)
            outcomes, failures = self._answer(execution)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            with contextlib.suppress(InfraError):
                page.end("CANCELLED" if interrupted else "FAILED", str(error) or type(error).__name__)
            raise
        message = "; ".join(dict.fromkeys(failures.values())) or run_page.completed(outcomes)
        try:
            self._show(page, outcomes, failures)
            page.end("FAILED" if failures else "COMPLETED", message)
        except InfraError as error:  # what the run has done stands
            return Ended(
                not failures, message, url, f"the Prefect server could not be told how the run ended ({error})"
            )
        return Ended(not failures, message, url)

    def _answer(self, execution: Execution) -> tuple[dict[str, Outcome], dict[str, str]]:
        """What became of the nodes, in the order of the plan, and why some could not be answered."""
        outcomes: dict[str, Outcome] = {}
        failures: dict[str, str] = {}

        def answer(plan: NodePlan) -> Outcome | StageError:
            began = time.time()
            try:
                return execution.node(plan.node, {})
            except StageError as error:
                return error
            finally:
                self._took[plan.node.name] = began, time.time()

        with ThreadPoolExecutor(THREADS, "moxin node") as threads:
            for plan, ended in zip(self.plans, threads.map(answer, self.plans), strict=True):
                if isinstance(ended, StageError):
                    failures[plan.node.name] = str(ended)
                else:
                    outcomes[plan.node.name] = ended
        execution.events.flush()
        return outcomes, failures

    def _show(self, page: RecordedRun, outcomes: Mapping[str, Outcome], failures: Mapping[str, str]) -> None:
        """Everything that the run's page has, but its end."""
        for plan in self.plans:
            name = plan.node.name
            if outcome := outcomes.get(name):
                parents = [parent for parent in plan.node.parents if parent in outcomes]
                page.task(name, parents, "Cached", outcome.reason, *self._took[name])
                page.log(f"cached: {outcome.reason}", task=name)
        for message in failures.values():
            page.log(message, logging.ERROR)
        page.send()
        page.table("plan", run_page.plan_rows(self.plans), run_page.PLAN_ABOUT)
        page.markdown("run-summary", run_page.summary(outcomes, failures), run_page.SUMMARY_ABOUT)


def planned(
    settings: Settings, pipeline: Pipeline, given: Mapping[str, Any]
) -> tuple[UnchangedRun | None, list[NodePlan]]:
    """The run, if all that it selects is done; and its plan, as far as there is one. given: parameters of the flow.

    Nothing is written, and nothing is raised but what is no trouble of a run: whatever stands in its way the flow
    meets, too, and says so on the run's page.
    """
    parameters = {**DEFAULTS, **given}
    if parameters["force"] or parameters["budget"] is not None:
        return None, []
    try:
        ledger = Ledger(Store(settings.store))
        values = experiments.view(ledger, pipeline, parameters["profile"], parameters["experiment"], parameters["set"])
        plans = make_plan(pipeline, values, ledger, parameters["select"])
        if not plans or len(answered(plans)) < len(plans) or not spoken_by(partial(prefect.call_api, settings)):
            return None, plans
        ledger.store.probe()
    except StageError:
        return None, []
    return UnchangedRun(settings, values, ledger, plans, parameters), plans
