"""`moxin rehearse`: a profile's DAG, small, where it is meant to run."""

from __future__ import annotations

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
    load_profile,
    out,
    print_json,
    say,
)
from flows.cli.running import configure_prefect, end, run_flow
from flows.cli.services import start_services
from stages.core.errors import ConfigError, InfraError

if TYPE_CHECKING:
    from flows.rehearsal.report import RehearsalReport
    from flows.settings import Settings
    from stages.core.shrinking import Level


def rehearse(
    profile: ProfileOption = "tiny",
    level: Annotated[
        str,
        typer.Option(
            help="'wiring': every step of the way, as small as can be; 'shape': real widths, lengths and batches, for"
            " memory and rates"
        ),
    ] = "wiring",
    select: SelectOption = "full",
    set_: SetOption = [],  # noqa: B006
    force: ForceOption = False,
    launcher: LauncherOption = None,
    processors: Annotated[
        bool, typer.Option("--processors", help="no GPUs anywhere: full precision on processors stands in for them")
    ] = False,
    budget: BudgetOption = None,
    approve: ApproveOption = False,
    json_: JsonOption = False,
) -> None:
    """Run a profile's DAG small, before its real run.

    It takes the profile's own launchers, engines, sources and kinds of parallelism, and says of each node whether it
    passed, what to change, and what the real run will take. Ends with 1 when a node failed.
    """
    from flows import spending

    chosen_level = _level(level)
    spending.check_amount(budget)
    overrides = all_overrides(set_, launcher)
    pipeline, _ = load_profile(profile, overrides)
    nodes = len(pipeline.select(select))
    configure_prefect()  # read when Prefect is imported
    settings = start_services(quiet=json_)

    def start() -> Any:
        from flows.flow import ProfileName
        from flows.rehearsal.run import rehearse as flow

        return flow(
            profile=ProfileName(profile),
            level=chosen_level,
            select=select,
            force=force,
            set=overrides,
            processors=processors,
            budget=budget,
            approve=approve,
            return_state=True,
        )

    state, _, url, server_knows = run_flow(start, settings, nodes, json_)
    from flows.rehearsal.report import REFUSED

    if state.name == REFUSED:
        raise ConfigError(state.message)
    outcome = _outcome(settings, profile, chosen_level, state.message or "the rehearsal ended without a report")
    _tell(outcome, settings, url, json_)
    end(0 if outcome.ok else 1, server_knows)


def _outcome(settings: Settings, profile: str, level: Level, message: str) -> RehearsalReport:
    """The report that a rehearsal has left; its message where it ended before there was one."""
    from flows.rehearsal import report
    from stages.core.store import Store

    outcome = report.read(Store(settings.store, interactive=True), profile, level)
    if outcome is None or message != outcome.summary():
        raise InfraError(message)
    return outcome


def _tell(outcome: RehearsalReport, settings: Settings, url: str, json_: bool) -> None:
    from flows.console import rows_table
    from flows.rehearsal import page

    place = page.place(settings.home, outcome.profile, outcome.level)
    if json_:
        print_json(outcome.model_dump(mode="json") | {"ok": outcome.ok, "page": str(place), "url": url})
        return
    out.print(rows_table(outcome.rows()))
    for fault in outcome.faults:
        say((fault.line, "red"))
    say(("passed" if outcome.ok else "failed", "green" if outcome.ok else "red"), f": {outcome.summary()}")
    say(f"the page: {place}")
    say((url, "dim"))


def _level(given: str) -> Level:
    from stages.core.shrinking import LEVELS

    for level in LEVELS:
        if level == given:
            return level
    raise ConfigError(f"--level {given}: there are {' and '.join(LEVELS)}")
