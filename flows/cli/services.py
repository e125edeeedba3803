"""`moxin up`, `down`, `status`: the local services."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from flows.cli.common import (
    JsonOption,
    err,
    out,
    print_json,
)
from flows.terminal_text import line

if TYPE_CHECKING:
    from flows.settings import Settings


def start_services(quiet: bool = False) -> Settings:
    from flows import deploy, local_services

    settings = local_services.up(
        after_server=deploy.register,
        say=(lambda text: None) if quiet else (lambda text: err.print(line((text, "dim")), soft_wrap=True)),
    )
    os.environ.update(settings.environment())
    return settings


def up(json_: JsonOption = False) -> None:
    """Start the store, the Prefect server and a worker here.

    All of them listen on this machine alone (loopback).
    """
    from flows import local_services

    start_services(quiet=json_)
    _show_status(local_services.status(), json_)


def down(json_: JsonOption = False) -> None:
    """Stop what `moxin up` started. Nothing stored is lost."""
    from flows import local_services

    stopped = local_services.down()
    if json_:
        print_json({"stopped": stopped})
    else:
        out.print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def status(
    password: Annotated[
        bool, typer.Option("--password", help="print what the Prefect pages ask for, and nothing else")
    ] = False,
    variables: Annotated[
        bool,
        typer.Option("--variables", help="print what another installation sets to use this one's store and server"),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Say what is running, and where it listens."""
    from flows import local_services

    if variables:
        from flows.settings import Settings

        for name, value in Settings.load().shared_environment().items():
            sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
        return
    if password:
        out.print(local_services.password() or "there is none yet: start the services with 'moxin up'")
        return
    rows = local_services.status()
    for text in local_services.close_lost_runs() if rows else ():
        err.print(line((text, "dim")), soft_wrap=True)
    _show_status(rows, json_)


def _show_status(rows: list[Any], json_: bool) -> None:
    from flows.console import rows_table

    values: list[dict[str, Any]] = [
        dict(cast("dict[str, Any]", row)) if isinstance(row, dict) else vars(row) for row in rows
    ]
    cache = _cache()
    if json_:
        print_json({"services": values, "cache": cache})
        return
    out.print(rows_table(values) if values else "nothing is running; start it with: moxin up")
    if cache["bytes"]:
        out.print(f"cache {cache['folder']}: {cache['bytes']:,} of {cache['budget']:,} bytes", soft_wrap=True)


def _cache() -> dict[str, Any]:
    """The local cache of fetched files: where it is, how full, and what it may keep (MOXIN_CACHE_BYTES)."""
    from flows.settings import environment
    from stages.core import eviction

    folder = environment().home / "cache"
    held = sum(entry.size for entry in eviction.entries(folder))
    return {"folder": str(folder), "bytes": held, "budget": eviction.budget(folder)}
