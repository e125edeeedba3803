"""A sweep as one Prefect flow: its points one after the other, each as `moxin run --experiment` makes it.

    prefect deployment run moxin/sweep -p name=lr -p 'grid=["pretrain_1.learning_rate=[1e-3, 2e-3]"]'

What points share is found by its key: the first one makes it. A point that fails keeps no other from its turn, and the
same sweep again goes on with what is missing.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import flow as run_flow
from flows import form, prefect_artifacts, preflight
from flows.experiments import points as sweep_points
from flows.experiments.points import Point
from flows.flow import ProfileName
from flows.plan import make_plan
from flows.profiles import Profile
from flows.settings import Settings
from flows.terminal_text import counted
from stages.core.errors import StageError
from stages.core.ledger import Ledger
from stages.core.store import Store

OUTCOMES: dict[str, list[dict[str, Any]]] = {}
"""What became of the points of this process's sweeps, by run: `{point, settings, state, message}`."""


def _run_name() -> str:
    """What a sweep is called in Prefect's pages."""
    given = cast("dict[str, Any]", flow_run.parameters or {})
    return " ".join(
        ["sweep", str(given.get("name")), str(given.get("profile", "tiny")), str(given.get("select", "full"))]
    )


@flow(
    name="moxin",
    flow_run_name=_run_name,
    task_runner=cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=2 * len(run_flow.PIPELINE))),
    on_cancellation=[run_flow.reap_run],
    on_crashed=[run_flow.reap_run],
    persist_result=False,
    validate_parameters=True,
)
def sweep(
    name: Annotated[str, form.Help("Of the sweep: its points are the experiments NAME.value")],
    profile: run_flow.ProfileField = ProfileName("tiny"),
    grid: Annotated[list[str], form.Help("Axes, each 'node.field=[value, value]': every combination is a point")] = [],  # noqa: B006 - Prefect shows a literal default in the form
    points: Annotated[list[str], form.Help("Points of their own, each 'node.field=value node.field=value'")] = [],  # noqa: B006
    select: form.Select = "full",
    force: form.Force = False,
    set: form.Overrides = [],  # noqa: B006
    why: form.Why = "",
    restarts: form.Restarts = 0,
) -> State[Any]:
    """Run a part of the pipeline with several settings, each as an experiment. What they share is made once."""
    log, run_id = get_run_logger(), str(flow_run.get_id())
    if restarts:
        log.warning("a sweep crashed: this one goes on with it by itself")
    try:
        state = _sweep(run_id, name, profile.value, sweep_points.points(name, grid, points, set), select, force, why)
    except StageError as error:
        log.error("%s", error)
        state = Failed(message=str(error))
    run_flow.ENDED[run_id] = state
    return state


def _sweep(run_id: str, name: str, profile: str, chosen: list[Point], select: str, force: bool, why: str) -> State[Any]:
    settings = Settings.load()
    ledger = Ledger(Store(settings.store))
    ledger.store.probe()
    values = sweep_points.open_points(ledger, profile, run_flow.PIPELINE, chosen, why or f"sweep {name}")
    rows = OUTCOMES[run_id] = [
        {"point": point.name, "settings": point.settings, "state": "waits", "message": ""} for point in chosen
    ]
    for row, one in zip(rows, values, strict=True):
        state = _run_point(run_id, one, ledger, settings, select, force)
        row |= {"state": state.name or state.type.value, "message": state.message or ""}
        prefect_artifacts.sweep_table(name, rows)
        if state.is_cancelled():
            return state
    failed = [row for row in rows if row["state"] != "Completed"]
    if failed:
        return Failed(message="; ".join(f"{row['point']}: {row['message']}" for row in failed))
    return Completed(message=f"{counted(len(rows), 'point')}: compare them with 'moxin compare'")


def _run_point(
    run_id: str, values: Profile, ledger: Ledger, settings: Settings, select: str, force: bool
) -> State[Any]:
    api_calls = prefect_artifacts.ApiCallQueue()
    try:
        plans = make_plan(run_flow.PIPELINE, values, ledger, select, force)
        preflight.refuse(run_flow.problems(plans, values))
        return run_flow.walk(run_id, run_flow.prepare(run_id, values, ledger, settings, plans, force, api_calls))
    except StageError as error:
        get_run_logger().error("%s: %s", values.experiment, error)
        return Failed(message=str(error))
