"""`moxin sweep`: several settings beside each other, each an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.common import (
    ForceOption,
    JsonOption,
    LauncherOption,
    ProfileOption,
    SelectOption,
    SetOption,
    all_overrides,
    load_profile,
    open_ledger,
    out,
    print_json,
    say,
)
from flows.cli.running import configure_prefect, end, run_flow
from flows.cli.services import start_services
from flows.terminal_text import line

if TYPE_CHECKING:
    from flows.settings import Settings


def sweep(
    name: Annotated[str, typer.Argument(help="of the sweep: its points are the experiments NAME.value")],
    grid: Annotated[
        list[str],
        typer.Option("--grid", metavar="NODE.FIELD=[A, B]", help="an axis: every combination is a point (repeatable)"),
    ] = [],  # noqa: B006
    point: Annotated[
        list[str], typer.Option("--point", metavar="'NODE.FIELD=A ..'", help="a point of its own (repeatable)")
    ] = [],  # noqa: B006
    profile: ProfileOption = "tiny",
    select: SelectOption = "full",
    set_: SetOption = [],  # noqa: B006
    force: ForceOption = False,
    launcher: LauncherOption = None,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="what the sweep is for")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what each point would run, and run nothing")] = False,
    json_: JsonOption = False,
) -> None:
    """Run with several settings as one flow, each an experiment.

    What they share is made once. The same command again goes on with what is missing.
    """
    from flows.experiments import points as sweep_points

    overrides = all_overrides(set_, launcher)
    chosen = sweep_points.points(name, grid, point, overrides)
    pipeline, _ = load_profile(profile, [])
    nodes = len(pipeline.select(select))
    for each in chosen:
        load_profile(profile, list(each.overrides))
    if dry_run:
        _print_plan(name, profile, chosen, select, force, json_)
        return
    configure_prefect()  # read when Prefect is imported
    settings = start_services(quiet=json_)

    def start() -> Any:
        from flows.flow import ProfileName
        from flows.sweep import sweep as flow

        return flow(
            name=name, profile=ProfileName(profile), grid=grid, points=point, select=select, force=force,
            set=overrides, why=why, return_state=True,
        )  # fmt: skip

    state, _, url, server_knows = run_flow(start, settings, nodes * len(chosen), json_)
    ok = state.is_completed()
    rows = _outcomes(chosen)
    comparison = _comparison(settings, profile, chosen)
    if json_:
        print_json({"ok": ok, "message": state.message, "url": url, "points": rows, "comparison": comparison})
    else:
        _tell(rows, comparison)
        say(("done" if ok else state.name.lower(), "green" if ok else "red"), f": {state.message}")
        say((url, "dim"))
    end(0 if ok else 1, server_knows)


def _outcomes(chosen: list[Any]) -> list[dict[str, Any]]:
    """What became of each point; nothing of one whose turn did not come."""
    from flows.sweep import OUTCOMES

    none = [{"point": each.name, "settings": each.settings, "state": "not begun", "message": ""} for each in chosen]
    return next(iter(OUTCOMES.values()), none)


def _comparison(settings: Settings, profile: str, chosen: list[Any]) -> dict[str, Any] | None:
    """The points that have results, beside each other; None where there are not two."""
    from flows.experiments import compare as comparing
    from flows.profiles import names_in
    from stages.pipeline import PIPELINE

    with open_ledger(settings) as ledger:
        names = [names_in(profile, each.name) for each in chosen if ledger.node_count(names_in(profile, each.name))]
        if len(names) < 2:
            return None
        return comparing.compare(ledger, PIPELINE, comparing.sides(ledger, PIPELINE, names))


def _tell(rows: list[dict[str, Any]], comparison: dict[str, Any] | None) -> None:
    from flows.console import rows_table
    from flows.experiments import text

    out.print(rows_table(rows))
    for title, table in text.tables(comparison) if comparison else ():
        say((title, "bold"))
        out.print(rows_table(table))


def _print_plan(name: str, profile: str, chosen: list[Any], select: str, force: bool, json_: bool) -> None:
    from flows.console import rows_table
    from flows.experiments import points as sweep_points
    from stages.pipeline import PIPELINE

    with open_ledger() as ledger:
        values = sweep_points.open_points(ledger, profile, PIPELINE, chosen, begin=False)
        rows = sweep_points.plan_points(ledger, PIPELINE, chosen, values, select, force)
    if json_:
        print_json({"sweep": name, "profile": profile, "points": rows})
        return
    out.print(
        rows_table(
            [
                {
                    "point": row["point"],
                    "settings": " ".join(row["settings"]),
                    "answered": str(len(row["answered"])),
                    "shared": str(len(row["shared"])),
                    "run": f"{len(row['run'])}: {', '.join(row['run'])}" if row["run"] else "nothing",
                }
                for row in rows
            ]
        )
    )
    for row in rows:
        if row["blocked"]:
            more = f"; and {len(row['blocked']) - 1} more nodes" if len(row["blocked"]) > 1 else ""
            out.print(line((f"{row['point']}: {row['blocked'][0]}{more}", "yellow")), soft_wrap=True)
