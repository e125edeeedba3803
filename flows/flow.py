"""The one Prefect flow, "moxin": walk the graph, one task for each node.

A node's task asks the ledger, leases the key, launches the stage's container and streams what it says. Prefect's own
result caching stays off: the ledger is the one source of truth.

    prefect deployment run moxin/full
    prefect deployment run moxin/full -p select=pretrain_1+ -p 'set=["pretrain_1.learning_rate=1e-3"]'
"""

import threading
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from prefect import allow_failure, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, StateType
from prefect.context import TagsContext
from prefect.exceptions import Pause
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import (
    cost,
    experiments,
    form,
    garbage_collection,
    node_form,
    prefect_artifacts,
    preflight,
    profiles,
    run_page,
    spending,
)
from flows.event_dispatch import Observer
from flows.execute import Execution, Outcome
from flows.launch import launcher
from flows.log_lines import metric_rows
from flows.lost_runs import RESTARTS
from flows.plan import NodePlan, answered, make_plan
from flows.rehearsal import planning as rehearsals
from flows.run_setup import execution_of
from flows.settings import Settings
from flows.spending import OverBudget, Spending
from stages.core.errors import StageError
from stages.core.keys import canonical_json, sha256
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.processes import no_core_files
from stages.core.store import Store
from stages.pipeline import PIPELINE

if TYPE_CHECKING:

    class ProfileName(StrEnum):
        """What a type checker sees of the enumeration below, whose members are files."""

else:
    ProfileName = StrEnum("ProfileName", {name: name for name in profiles.names()})
    """The profiles in infra/profiles, as a drop-down in the UI."""

ProfileField = Annotated[ProfileName, form.Help("The values of the run: a file of infra/profiles")]

#: Observers that whoever calls the flow in this process adds (the command line's progress display).
EXTRA_OBSERVERS: list[Observer] = []
PLANNED: list[NodePlan] = []
"""The plan of the run that begins next, where whoever calls the flow in this process has made it a moment ago."""


class Run:
    """What the tasks of one flow run share. Kept out of their parameters: those travel to the Prefect API."""

    def __init__(
        self,
        execution: Execution,
        plans: list[NodePlan],
        api_calls: prefect_artifacts.ApiCallQueue,
        reports: bool = True,
    ) -> None:
        """reports: whether the run's report is made at its end."""
        self.execution, self.plans, self.api_calls, self.reports = execution, plans, api_calls, reports
        self.nodes = {plan.node.name: plan.node for plan in plans}
        """As this configuration has them: without the ports that it does not read."""
        self.interrupted = False
        self.results: dict[str, StageResult] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.failures: dict[str, str] = {}
        self.lock = threading.Lock()


SKIPPED = "Skipped"
"""Name of the state of a node whose parents have no results."""
OVER_BUDGET = "Over budget"
"""Name of the state of a run that its budget stopped, and of the nodes that were not begun for it."""
_RUNS: dict[str, Run] = {}
ENDED: dict[str, State[Any]] = {}
"""How runs of this process ended, by id: known even where the Prefect server can no longer be told."""


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def run_node(name: str, run_id: str) -> State[Any]:
    """Bring one node up to date."""
    run = _RUNS[run_id]
    node = run.nodes[name]
    if run.interrupted:
        return Cancelled(message="the run was interrupted before it began")
    with run.lock:
        lacking = [parent for parent in node.parents if parent in run.nodes and parent not in run.results]
    if lacking:
        message = f"it needs {', '.join(lacking)}, which did not end well"
        run.execution.tell(name, "state", state="skipped", message=message)
        if run.execution.spending and not run.execution.spending.stopped:
            run.execution.spending.close(name)
        # of type FAILED: Prefect lets no task begin after a cancelled one, not even by allow_failure
        return State(type=StateType.FAILED, name=SKIPPED, message=message)
    try:
        observer = prefect_artifacts.TaskObserver(name, run.api_calls, partial(_former_rows, run.execution, name))
        with run.execution.events.subscribe(name, observer):
            outcome = run.execution.node(node, run.results)
    except OverBudget as error:
        return State(type=StateType.FAILED, name=OVER_BUDGET, message=str(error))
    except StageError as error:
        if run.interrupted:
            return Cancelled(message=str(error))
        with run.lock:
            run.failures[name] = str(error)
        return Failed(message=str(error))
    with run.lock:
        run.results[name], run.outcomes[name] = outcome.result, outcome
    if outcome.cached:
        return Completed(name="Cached", message=outcome.reason)
    ledger, picture = run.execution.ledger, observer.picture
    run.api_calls.put(f"node {name}", lambda: prefect_artifacts.node_artifacts(ledger, outcome, picture))
    return Completed(message=f"ran in {outcome.seconds:.1f} s")


def _former_rows(execution: Execution, name: str) -> list[dict[str, float]]:
    """Metric rows of the result that a node has had so far: its name moves when the new one is there."""
    record = execution.ledger.node(execution.profile.names, name)
    result = execution.ledger.manifest(record.key) if record else None
    return metric_rows(execution.ledger.store, result[0].metrics_object) if result else []


def reap_run(flow: Any, flow_run: Any, state: Any) -> None:
    """After a cancel or a crash, from the worker's process: stop whatever stage of that run is still there.

    Prefect passes the arguments by these names.
    """
    settings = Settings.load()
    given = flow_run.parameters
    values = experiments.view(
        Ledger(Store(settings.store)),
        PIPELINE,
        str(given.get("profile", "tiny")),
        given.get("experiment", ""),
        node_form.given_overrides(given),
    )
    for name in sorted({values.settings.launcher, *values.launchers.values()}):
        stage_launcher = launcher(name, settings)
        if state.is_cancelled() or not stage_launcher.detached:  # the next run takes over a job that outlives a crash
            stage_launcher.reap(run_id=str(flow_run.id))


def _run_name() -> str:
    return run_page.run_name(cast("dict[str, Any]", flow_run.parameters or {}))


@flow(
    name="moxin",
    flow_run_name=_run_name,
    # TaskRunner is invariant in its future's type, so Prefect's own runners do not fit its own annotation
    task_runner=cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=2 * len(PIPELINE))),
    on_cancellation=[reap_run],
    on_crashed=[reap_run],
    persist_result=False,
    validate_parameters=True,
)
def moxin(
    profile: ProfileField = ProfileName("tiny"),
    select: form.Select = "full",
    force: form.Force = False,
    fields: form.Fields = {},  # noqa: B006 - Prefect shows a literal default in the form; it is never changed
    set: form.Overrides = [],  # noqa: B006
    experiment: form.Experiment = "",
    why: form.Why = "",
    plan_only: form.PlanOnly = False,
    budget: form.Budget = None,
    approve: form.Approve = False,
    restarts: form.Restarts = 0,
) -> State[Any]:
    """Run the Moxin pipeline, or a part of it. Finished nodes are answered from the ledger; a broken one resumes."""
    no_core_files()  # a worker may have been started by other means than 'moxin up'
    log, api_calls = get_run_logger(), prefect_artifacts.ApiCallQueue()
    run_id = str(flow_run.get_id())
    overrides = node_form.given_overrides({"fields": fields, "set": set})
    try:
        settings = Settings.load()
        values = profiles.load(profile.value, PIPELINE, overrides)
        ledger = Ledger(Store(settings.store))
        ledger.store.probe()
        if experiment:
            values = experiments.begun(ledger, experiment, profile.value, PIPELINE, overrides, why)
        for warning in _warnings(values, restarts):
            log.warning("%s", warning)
        plans = [*PLANNED] or make_plan(PIPELINE, values, ledger, select, force)
        PLANNED.clear()
        api_calls.put("plan", lambda: prefect_artifacts.plan_table(plans))
        for plan in plans:
            log.info("%s", run_page.plan_line(plan))
        spent = (
            spending_of(plans, values, ledger, budget, approve, settings.home, (select, *overrides)) if budget else None
        )
        if spent:
            api_calls.put("budget", lambda: prefect_artifacts.budget_table(spent.rows))
        if plan_only:
            api_calls.close()
            return Completed(message="planned only: see the table")
        preflight.refuse(problems(plans, values))
        if spent:
            for line in spent.begin(lost=restarts > 0):
                log.info("%s", line)
        run = prepare(run_id, values, ledger, settings, plans, force, api_calls)
        run.execution.spending = spent
    except StageError as error:
        log.error("%s", error)
        return Failed(message=str(error))
    ENDED[run_id] = walk(run_id, run)
    return ENDED[run_id]


def prepare(
    run_id: str,
    values: profiles.Profile,
    ledger: Ledger,
    settings: Settings,
    plans: list[NodePlan],
    force: bool,
    api_calls: prefect_artifacts.ApiCallQueue,
) -> Run:
    """What is to be walked: a plan with its launchers, after the garbage of runs before it is gone."""
    execution = execution_of(run_id, values, ledger, settings, plans, force, EXTRA_OBSERVERS)
    for line in garbage_collection.collect(settings.home, ledger):
        get_run_logger().info("%s", line)
    return Run(execution, plans, api_calls)


def _warnings(values: profiles.Profile, restarts: int) -> list[str]:
    """What a person should see before anything runs."""
    crashed = [f"a run crashed: this one goes on with it by itself, restart {restarts} of {RESTARTS} at most"]
    return crashed * bool(restarts) + list(values.warnings)


def spending_of(
    plans: list[NodePlan],
    values: profiles.Profile,
    ledger: Ledger,
    budget: float,
    approve: bool,
    home: Path,
    given: tuple[str, ...],
) -> Spending:
    """The count of a run with a budget. given: what tells it from other runs of the profile."""
    rows = spending.costs(plans, values, rehearsals.estimates(plans, values, ledger))
    name = sha256(canonical_json([values.names, budget, *given]))[:16]
    return Spending(rows, cost.prices_of(values), budget, approve, home / "spending" / f"{name}.json")


def problems(plans: list[NodePlan], values: profiles.Profile) -> list[preflight.Finding]:
    """What will stop the nodes that are to run."""
    names = [plan.node.name for plan in plans if plan.will_run]
    if not names:
        return []
    scales = {name: one.scale for name, one in cost.estimate(plans, values, None).items()}
    return [*preflight.problems(PIPELINE, values, names), *preflight.too_large(scales)]


def walk(run_id: str, run: Run) -> State[Any]:
    """Submit the nodes in order, each after its parents; stop every stage when the run is interrupted."""
    _RUNS[run_id] = run
    execution = run.execution
    try:
        run.results.update(_given(run.plans, execution.ledger, execution.profile))
        futures: dict[str, Any] = {}
        for plan in run.plans:
            name = plan.node.name
            upstream = [allow_failure(futures[parent]) for parent in plan.node.parents if parent in futures]
            named: Any = run_node.with_options(name=name)  # what a task is called that still waits
            with TagsContext(current_tags=set()):  # a task with tags asks the server for each tag's limit
                futures[name] = named.submit(name, run_id, return_state=False, wait_for=upstream)
        for name, future in futures.items():
            _wait(future)
            if future.state.name not in (SKIPPED, OVER_BUDGET) and (
                future.state.is_failed() or future.state.is_crashed()
            ):
                # a failure that no StageError told of
                run.failures.setdefault(name, f"{name} failed: {future.state.message}")
    except StageError as error:
        return Failed(message=str(error))
    except BaseException as error:
        run.interrupted = True
        if isinstance(error, Pause):
            get_run_logger().info("suspended: what runs saves a checkpoint and ends, Resume goes on from there")
        try:
            execution.stop()
        except Exception as trouble:  # one launcher is away: the others are waited for, and the run ends as what it is
            get_run_logger().warning("not every stage could be asked to stop: %s", prefect_artifacts.short(trouble))
        execution.wait_stopped()  # Prefect's worker kills the flow after 30 s: stages stop by themselves then
        run.api_calls.close(run.api_calls.INTERRUPTED_SECONDS)
        if isinstance(error, KeyboardInterrupt):
            return Cancelled(
                message="interrupted; what had finished is in the ledger, the next run continues from there"
            )
        raise
    finally:
        _RUNS.pop(run_id, None)
    run.api_calls.put("summary", lambda: prefect_artifacts.run_summary(run.outcomes, run.failures))
    if run.reports and any(not outcome.cached for outcome in run.outcomes.values()):
        _report(run)
    _tell_trouble(run)
    why = list(dict.fromkeys(run.failures.values()))  # nodes that lack the same thing say so once
    if spent := execution.spending:
        spent.finish()
    if spent and spent.stopped:
        return State(type=StateType.FAILED, name=OVER_BUDGET, message="; ".join([*why, spent.message()]))
    if why:
        return Failed(message="; ".join(why))
    if missing := [name for name in run.nodes if name not in run.results]:  # no failure explains it: never "done"
        return Failed(message=f"no result of {', '.join(missing)}: run again")
    money = f"; {spending.money(spent.spent)} of {spending.money(spent.budget)} spent" if spent else ""
    return Completed(message=f"{run_page.completed(run.outcomes)}{money}")


def _wait(future: PrefectFuture[Any]) -> None:
    """Wait for a task. Raises Pause when the run was suspended meanwhile: Prefect looks for that where a wait ends."""
    ended = threading.Event()
    future.add_done_callback(lambda _: ended.set())
    while not ended.wait(1.0):
        future.wait(0)
    future.wait()


def _tell_trouble(run: Run) -> None:
    """What did not get to those who watch: one line for each of them."""
    late = run.api_calls.close()
    run.execution.events.flush()
    for line in (*([late] if late else []), *run.execution.events.problems()):
        run.execution.tell("moxin", "log", level="warning", message=line)
        get_run_logger().warning("%s", line)
    run.execution.events.flush()


def _report(run: Run) -> None:
    """Make the report. Trouble with it is told, and never spoils what the run has made."""
    log, execution = get_run_logger(), run.execution
    try:
        log.info(
            "report: %s",
            prefect_artifacts.run_report(execution.ledger, execution.profile, PIPELINE, execution.home, run.api_calls),
        )
    except StageError as error:
        log.warning("no report: %s", error)
    except Exception:
        log.exception("no report, because of a fault in it")


def _given(plans: list[NodePlan], ledger: Ledger, profile: profiles.Profile) -> dict[str, StageResult]:
    """Results of nodes that are not selected but feed selected ones, as the plan has them: their drift is let be, and
    what is lost is no result.
    """
    selected = {plan.node.name for plan in plans}
    outside = {parent for plan in plans for parent in plan.node.parents} - selected
    if not outside:
        return {}
    let_be = replace(profile, settings=profile.settings.model_copy(update={"on_drift": "warn"}))
    parent_plans = make_plan(PIPELINE, let_be, ledger, [f"+{name}" for name in sorted(outside)])
    return {name: known.result for name, known in answered(parent_plans).items() if known.result}
