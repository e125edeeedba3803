"""`moxin check`: the pipeline, the profiles, the generated files, a profile's sources."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from flows.cli.common import (
    JsonOption,
    ProfileOption,
    SetOption,
    err,
    load_profile,
    out,
    print_json,
    print_problems,
    print_warnings,
)
from flows.terminal_text import line
from stages.core.errors import ConfigError


def check(
    write: Annotated[
        bool, typer.Option("--write", help="bring the derived files up to date instead of complaining")
    ] = False,
    sources: Annotated[
        bool,
        typer.Option(
            "--sources", help="instead: open one row of every source of the profile, find its images, ask its launchers"
        ),
    ] = False,
    profile: ProfileOption = "tiny",
    set_: SetOption = [],  # noqa: B006
    json_: JsonOption = False,
) -> None:
    """Check the pipeline, its profiles and derived files.

    Or a profile's sources, with --sources.
    """
    from flows import generated_files

    if sources:
        _check_sources(profile, set_, json_)
        return
    problems, warnings = generated_files.check(write)
    print_warnings(warnings)
    if json_:
        print_json({"ok": not problems, "problems": problems})
    else:
        for problem in problems:
            err.print(line((problem, "red")), soft_wrap=True)
        out.print("stale" if problems else "the pipeline, its profiles and the derived files are in order")
    if problems:
        raise typer.Exit(1)


def _check_sources(profile: str, overrides: list[str], json_: bool) -> None:
    """What stands between a profile and its run, one line for each problem."""
    from flows import source_checks
    from flows.settings import Settings
    from stages.pipeline import PIPELINE

    _, values = load_profile(profile, overrides)
    settings = None
    with contextlib.suppress(ConfigError):  # no store: one problem among others
        settings = Settings.load()
    problems, opened = source_checks.check(PIPELINE, values, settings)
    if json_:
        print_json({"ok": not problems, "problems": [f.row() for f in problems], "opened": [o.row() for o in opened]})
    else:
        for source in opened:
            out.print(line(f"{source.node}: {source.what}: {source.answer}"), soft_wrap=True)
        print_problems(problems, "to solve")
        if not problems:
            out.print(f"nothing to solve; sources that gave a row: {len(opened)}")
    if problems:
        raise typer.Exit(1)
