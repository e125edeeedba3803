"""`moxin run`: the flow in this terminal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.common import (
    ApproveOption,
    BudgetOption,
    ForceOption,
    JsonOption,
    LauncherOption,
    ProfileOption,
    SelectOption,
    SetOption,
    all_overrides,
    find_node,
    load_profile,
    open_ledger,
    out,
    print_json,
    progress,
    say,
)
from flows.cli.services import start_services
from stages.core.errors import ConfigError, InfraError

if TYPE_CHECKING:
    from flows.console import RunDisplay
    from flows.settings import Settings
    from flows.unchanged_run import Ended, UnchangedRun


AdoptOption = Annotated[
    list[str],
    typer.Option(
        "--adopt", metavar="NODE=PLACE", help="begin with what others made, as 'moxin adopt' takes it (repeatable)"
    ),
]


def run(
    profile: ProfileOption = "tiny",
    select: SelectOption = "full",
    set_: SetOption = [],  # noqa: B006
    force: ForceOption = False,
    launcher: LauncherOption = None,
    experiment: Annotated[
        str,
        typer.Option(
            "--experiment",
            "-e",
            metavar="NAME",
            help="a name for these settings: their results are found by it, and no other name moves",
        ),
    ] = "",
    adopt: AdoptOption = [],  # noqa: B006
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="what the experiment is for")] = "",
    budget: BudgetOption = None,
    approve: ApproveOption = False,
    json_: JsonOption = False,
) -> None:
    """Run the DAG, or a part of it, as a Prefect flow here.

    Starts the services that are not up.
    """
    from flows import spending, unchanged_run
    from flows.experiments import split

    spending.check_amount(budget)
    profile, experiment = split(profile, experiment)
    overrides = all_overrides(set_, launcher)
    pipeline, values = load_profile(profile, overrides)
    places = [adoption(each) for each in adopt]
    pipeline.select(select)
    configure_prefect()  # read when Prefect is imported, which registering the deployments does: before the services
    settings = start_services(quiet=json_)
    if places:
        overrides += adopted(settings, values, places, quiet=json_)
        pipeline, values = load_profile(profile, overrides)
    chosen = values.wire(pipeline).select(select)
    parameters = {"select": select, "force": force, "set": overrides, "experiment": experiment, "why": why}
    parameters |= {"budget": budget, "approve": approve}
    unchanged, plans = unchanged_run.planned(settings, pipeline, {"profile": profile, **parameters})
    if unchanged:
        ended, outcomes = answer(unchanged, len(chosen), json_)
        tell(ended.ok, "failed", ended.message, ended.url, outcomes, json_)
        raise typer.Exit(0 if ended.ok else 1)

    def start() -> Any:
        from flows import flow as flow_module

        flow_module.PLANNED[:] = plans
        return flow_module.moxin(profile=flow_module.ProfileName(profile), **parameters, return_state=True)

    state, outcomes, url, server_knows = run_flow(start, settings, len(chosen), json_)
    tell(state.is_completed(), state.name.lower(), state.message, url, outcomes, json_)
    end(0 if state.is_completed() else 1, server_knows)


def tell(ok: bool, state: str, message: str, url: str, outcomes: list[dict[str, Any]], json_: bool) -> None:
    """Say how a run ended. state: what it is called where it did not end well."""
    if json_:
        print_json({"ok": ok, "message": message, "url": url, "nodes": outcomes})
    else:
        say(("done" if ok else state, "green" if ok else "red"), f": {message}")
        say((url, "dim"))


def answer(unchanged: UnchangedRun, nodes: int, quiet: bool) -> tuple[Ended, list[dict[str, Any]]]:
    """Carry out a run that has nothing to do, with a display; how it ended, and the nodes' outcomes."""
    recorder = _Recorder()
    with _display(nodes, quiet) as display:
        ended = unchanged.carry_out([display, recorder])
        if ended.trouble:
            display.event("moxin", {"event": "log", "level": "warning", "message": ended.trouble})
    return ended, list(recorder.rows.values())


def _display(nodes: int, quiet: bool) -> RunDisplay:
    from rich.console import Console

    from flows.console import RunDisplay

    return RunDisplay(Console(quiet=True) if quiet else out.console, nodes)


def adoption(text: str) -> tuple[str, str]:
    """Node and place of an `--adopt`. Raises ConfigError."""
    node, _, place = text.partition("=")
    if not place:
        raise ConfigError(f"--adopt {text}: write NODE=PLACE, for example pretrain_3=hf://mistralai/Mistral-7B-v0.1")
    return find_node(node).name, place


def adopted(settings: Settings, values: Any, places: list[tuple[str, str]], quiet: bool) -> list[str]:
    """What lies at these places becomes results; the overrides that take them."""
    from flows import outside

    overrides: list[str] = []
    with open_ledger(settings) as ledger, progress(quiet) as tell:
        for node, place in places:
            done = outside.adopt(ledger, find_node(node), values.configs[node], place, settings.home / "adopt", tell)
            overrides.append(f"adopt.{node}={done.result.key}")
            if not quiet:
                say((node, "bold"), f" {done.result.key[:12]}: adopted from {done.result.config['place']}")
    return overrides


def end(status: int, server_knows: bool) -> None:
    """End the program. Where the Prefect server is gone, at once: Prefect's threads would try to send it each event
    that is left, for seconds each.
    """
    if not server_knows:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if status:
        raise typer.Exit(status)


def configure_prefect() -> None:
    """Set what Prefect's client in this terminal goes by. Must be called before Prefect is imported."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the display shows it; the UI keeps it
    os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
    # A server that is gone or hangs: by default each call is repeated for a minute, or for six where it hangs, and the
    # end of a run waits for it. What a run has made does not depend on it, and the next start closes its Prefect run.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "1")
    # Longer than the server waits for its database (flows/local_services/prefect.py): a POST given up earlier is sent
    # again though the first one is still carried out.
    os.environ.setdefault("PREFECT_API_REQUEST_TIMEOUT", "35")


def run_flow(
    start: Callable[[], Any], settings: Settings, nodes: int, quiet: bool
) -> tuple[Any, list[dict[str, Any]], str, bool]:
    """Run a flow in this process, with a display; its final state, the nodes' outcomes, its page, and whether the
    Prefect server knows how it ended.
    """
    from prefect import tags

    from flows import flow as flow_module
    from flows import lost_runs, prefect_artifacts
    from flows.experiments.naming import BY, user

    logging.raiseExceptions = False  # a log line that does not get to the Prefect server is no news for this terminal
    recorder, server_knows = _Recorder(), True
    with _display(nodes, quiet) as display:
        flow_module.EXTRA_OBSERVERS[:] = [display, recorder]
        try:
            with tags(lost_runs.tag(), f"{BY}{user()}"):
                state = start()
        except Exception as error:  # Prefect's own trouble: how the run ended is known here
            if not flow_module.ENDED:
                why = prefect_artifacts.short(error)
                raise InfraError(f"the Prefect server at {settings.prefect_ui_url} let the run down: {why}") from error
            state, server_knows = next(iter(flow_module.ENDED.values())), False
            message = f"the Prefect server could not be told how the run ended ({prefect_artifacts.short(error)})"
            display.event("moxin", {"event": "log", "level": "warning", "message": message})
    run_id = next(iter(flow_module.ENDED), state.state_details.flow_run_id)
    if state.is_cancelled():
        raise KeyboardInterrupt
    return state, list(recorder.rows.values()), f"{settings.prefect_ui_url}/runs/flow-run/{run_id}", server_knows


class _Recorder:
    """Keeps each node's last state for --json."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def event(self, node: str, event: Any) -> None:
        if event["event"] == "state":
            self.rows[node] = {"name": node, **{k: v for k, v in event.items() if k != "event"}}
