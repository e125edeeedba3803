"""The one Prefect flow, "moxin": walk the graph, one task for each node.

A node's task asks the ledger, leases the key, launches the stage's container and streams what it says. Prefect's own
result caching stays off: the ledger is the one source of truth.

    prefect deployment run moxin/full
    prefect deployment run moxin/full -p select=pretrain_1+ -p 'set=["pretrain_1.learning_rate=1e-3"]'
"""

import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, cast

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from flows import observe, profiles
from flows.execute import STOP_GRACE, Execution, Observer, Outcome
from flows.launch import Launcher, launcher
from flows.plan import NodePlan, make_plan
from flows.settings import Settings
from stages.core.contracts import ConfigError, StageError, StageResult
from stages.core.ledger import Ledger
from stages.core.store import Store
from stages.pipeline import PIPELINE

if TYPE_CHECKING:

    class ProfileName(StrEnum):
        """What a type checker sees of the enumeration below, whose members are files."""

else:
    ProfileName = StrEnum("ProfileName", {name: name for name in profiles.names()})
    """The profiles in infra/profiles, as a drop-down in the UI."""

#: Observers that whoever calls the flow in this process adds (the command line's progress display).
EXTRA_OBSERVERS: list[Observer] = []


class _Run:
    """What the tasks of one flow run share. Kept out of their parameters: those travel to the Prefect API."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.results: dict[str, StageResult] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.failures: dict[str, str] = {}
        self.lock = threading.Lock()


_RUNS: dict[str, _Run] = {}


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def run_node(name: str, run_id: str) -> State[Any]:
    """Bring one node up to date."""
    run = _RUNS[run_id]
    observer = observe.TaskObserver(name)
    run.execution.observers.append(observer)
    try:
        outcome = run.execution.node(PIPELINE[name], run.results)
    except StageError as error:
        with run.lock:
            run.failures[name] = str(error)
        return Failed(message=str(error))
    finally:
        run.execution.observers.remove(observer)
        observer.close()
    with run.lock:
        run.results[name] = outcome.result
        run.outcomes[name] = outcome
    if outcome.cached:
        return Completed(name="Cached", message=outcome.reason)
    observe.node_artifacts(run.execution.ledger, outcome)
    return Completed(message=f"ran in {outcome.seconds:.1f} s")


def _reap(flow: Any, flow_run: Any, state: Any) -> None:
    """After a cancel or a crash, from the worker's process: stop whatever stage of that run is still there.

    Prefect passes the arguments by these names.
    """
    settings = Settings.load()
    given = flow_run.parameters
    values = profiles.load(str(given.get("profile", "tiny")), PIPELINE, given.get("set", ()))
    for name in sorted({values.settings.launcher, *values.launchers.values()}):
        engine = launcher(name, settings)
        if state.is_cancelled() or not engine.detached:  # a job that outlives a crash is adopted by the next run
            engine.reap(run_id=str(flow_run.id))


@flow(
    name="moxin",
    # TaskRunner is invariant in its future's type, so Prefect's own runners do not fit its own annotation
    task_runner=cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=2 * len(PIPELINE))),
    on_cancellation=[_reap],
    on_crashed=[_reap],
    persist_result=False,
    validate_parameters=True,
)
def moxin(
    profile: Annotated[ProfileName, Field(description="The values of the run: infra/profiles/<name>.toml")] = ProfileName("tiny"),
    select: Annotated[
        str,
        Field(description="Which nodes: 'full', or names and stages separated by commas; 'x+' adds what follows, '+x' what x needs"),
    ] = "full",
    force: Annotated[bool, Field(description="Run the selected nodes even if the ledger has their results")] = False,
    set: Annotated[
        list[str], Field(description="Overrides on top of the profile, each 'node.field=value', for example pretrain_1.learning_rate=1e-3")
    ] = [],  # noqa: B006 - Prefect shows a literal default in the form; it is never changed
    plan_only: Annotated[bool, Field(description="Show the plan as a table and run nothing")] = False,
) -> State[Any]:
    """Run the Moxin pipeline, or a part of it. Finished nodes are answered from the ledger; a broken one resumes."""
    log = get_run_logger()
    run_id = str(flow_run.get_id())
    try:
        settings = Settings.load()
        values = profiles.load(profile.value, PIPELINE, set)
        ledger = Ledger(Store(settings.store))
        ledger.store.probe()
        plans = make_plan(PIPELINE, values, ledger, select, force)
        observe.plan_table(plans)
        for plan in plans:
            log.info("%-20s %-8s %s", plan.node.name, plan.state.value, plan.reason)
        if plan_only:
            return Completed(message="planned only: see the table")
        if values.settings.plan_only:
            raise ConfigError(f"profile '{values.name}' is for planning only as yet: pass plan_only, or use another profile")
        engines = _engines(values, plans, settings)
        default = launcher(values.settings.launcher, settings)
        selected, observers = frozenset(p.node.name for p in plans), list(EXTRA_OBSERVERS)
        answered = {p.node.name: p.resolved for p in plans if p.resolved and p.resolved.result and not p.will_run}
        execution = Execution(run_id, values, ledger, default, settings.home, selected, force, observers, answered, engines)
    except StageError as error:
        log.error("%s", error)
        return Failed(message=str(error))
    return _walk(run_id, _Run(execution), plans)


def _engines(values: profiles.Profile, plans: list[NodePlan], settings: Settings) -> dict[str, Launcher]:
    """The launcher of each planned node, one for each name; what dead control planes left to them is removed."""
    names = {plan.node.name: values.launchers[plan.node.name] for plan in plans}
    engines = {name: launcher(name, settings) for name in sorted(set(names.values()))}
    for engine in engines.values():
        engine.reap()
    return {node: engines[name] for node, name in names.items()}


def _walk(run_id: str, run: _Run, plans: list[NodePlan]) -> State[Any]:
    """Submit the nodes in order, each after its parents; stop every stage when the run is interrupted."""
    _RUNS[run_id] = run
    try:
        for parent, result in _given(plans, run.execution.ledger, run.execution.profile).items():
            run.results[parent] = result
        futures: dict[str, Any] = {}
        for plan in plans:
            upstream = [futures[parent] for parent in plan.node.parents if parent in futures]
            futures[plan.node.name] = run_node.submit(plan.node.name, run_id, return_state=False, wait_for=upstream)
        for name, future in futures.items():
            future.wait()
            if future.state.is_failed() or future.state.is_crashed():  # a failure that no StageError told of
                run.failures.setdefault(name, f"{name} failed: {future.state.message}")
    except StageError as error:
        return Failed(message=str(error))
    except BaseException:
        run.execution.stop()
        run.execution.wait_stopped(STOP_GRACE)
        raise
    finally:
        _RUNS.pop(run_id, None)
    observe.run_summary(run.outcomes, run.failures)
    if any(not outcome.cached for outcome in run.outcomes.values()):
        _report(run.execution)
    if run.failures:
        return Failed(message="; ".join(dict.fromkeys(run.failures.values())))  # nodes that lack the same thing say so once
    ran = sum(not outcome.cached for outcome in run.outcomes.values())
    return Completed(message=f"{ran} nodes ran, {len(run.outcomes) - ran} were answered from the ledger")


def _report(execution: Execution) -> None:
    """Make the report. Trouble with it is told, and never spoils what the run has made."""
    log = get_run_logger()
    try:
        log.info("report: %s", observe.run_report(execution.ledger, execution.profile, PIPELINE, execution.home))
    except StageError as error:
        log.warning("no report: %s", error)
    except Exception:
        log.exception("no report, because of a fault in it")


def _given(plans: list[NodePlan], ledger: Ledger, profile: profiles.Profile) -> dict[str, StageResult]:
    """Results of nodes that are not selected but feed selected ones."""
    selected = {plan.node.name for plan in plans}
    outside = {parent for plan in plans for parent in plan.node.parents} - selected
    if not outside:
        return {}
    found = make_plan(PIPELINE, profile, ledger, sorted({a for o in outside for a in (o, *PIPELINE.ancestors(o))}))
    return {p.node.name: p.resolved.result for p in found if p.resolved and p.resolved.result}
