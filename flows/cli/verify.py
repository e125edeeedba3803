"""`moxin verify`: every digest of a model's chain again, in the store or in a released folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.common import (
    ExperimentOption,
    JsonOption,
    KeyOption,
    ProfileOption,
    SetOption,
    err,
    find_node,
    open_ledger,
    out,
    print_json,
    read_profile,
    say,
)
from flows.terminal_text import counted, line
from stages.core.errors import ConfigError

if TYPE_CHECKING:
    from flows.settings import Settings


def verify(
    model: Annotated[str, typer.Argument(help="a node, or the folder of a released model")],
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    set_: SetOption = [],  # noqa: B006
    key: KeyOption = "",
    deep: Annotated[
        bool, typer.Option("--deep/--quick", help="read every file; --quick: its presence and size alone")
    ] = True,
    rerun: Annotated[
        str | None, typer.Option("--rerun", metavar="NODE", help="make this node's result again, and compare")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", metavar="PUB.pem", help="of a folder: check its signature with this")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Check every link between a model and its raw sources.

    The exit status is 1 where one does not hold. With --set: of the result of these settings; with --key: of that key.
    """
    if model not in _nodes() and (Path(model).is_dir() or "/" in model):
        if not Path(model).is_dir():
            raise ConfigError(f"there is no folder {model}")
        if rerun is not None or not deep or set_ or key:
            raise ConfigError(f"{model} is a folder: --rerun, --quick, --set and --key are for nodes of a run")
        row = _verify_folder(Path(model), public_key)
    else:
        if public_key is not None:
            raise ConfigError(f"--public-key goes with the folder of a release, and there is no folder {model}")
        row = _verify_node(find_node(model).name, (profile, experiment, set_), key, deep, rerun)
    if json_:
        print_json(row)
    else:
        _tell(row)
    if not row["ok"]:
        raise typer.Exit(1)


def _nodes() -> set[str]:
    from stages.pipeline import PIPELINE

    return set(PIPELINE.nodes)


def _verify_folder(folder: Path, public_key: Path | None) -> dict[str, Any]:
    """What `moxin verify FOLDER` says, as JSON values."""
    from flows.release import folder_checks

    began = time.monotonic()
    verdict = folder_checks.verify(folder, public_key)
    return verdict.row() | {"deep": True, "seconds": round(time.monotonic() - began, 3)}


def _verify_node(
    node: str, where: tuple[str, str, list[str]], key: str, deep: bool, again: str | None
) -> dict[str, Any]:
    """What `moxin verify NODE` says, as JSON values. where: profile, experiment and settings."""
    from flows.experiments import results
    from flows.release import checks
    from flows.settings import Settings

    settings, began = Settings.load(), time.monotonic()
    with open_ledger(settings) as ledger:
        pipeline, values = read_profile(ledger, *where)
        if key or where[2]:
            key = results.of_node(ledger, pipeline, values, node, key).key
        verdict = checks.verify(ledger, values.names, node, deep, key)
        row = verdict.row() | {"deep": deep, "seconds": round(time.monotonic() - began, 3)}
        if again is not None:
            link = checks.require_node(verdict.chain, find_node(again).name)
            row["rerun"] = _rerun(ledger, link, pipeline, values, settings)
            row["ok"] = row["ok"] and row["rerun"]["kept"]
    return row


def _rerun(ledger: Any, link: Any, pipeline: Any, values: Any, settings: Settings) -> dict[str, Any]:
    from flows.launch import launcher
    from flows.release.rerun import rerun

    node = pipeline[link.node]
    done = rerun(
        ledger,
        link,
        node,
        values.resources[node.name],
        launcher(values.launchers[node.name], settings),
        lambda text: err.print(line((text, "dim")), soft_wrap=True),
    )
    return done.row() | {"line": done.line}


def _tell(row: dict[str, Any]) -> None:
    """A verdict for people."""
    for fault in row["faults"]:
        out.print(line(("broken:", "red"), f" {fault['node']}: {fault['link']}: {fault['what']}"), soft_wrap=True)
    for note in row["notes"]:
        out.print(line(("note:", "dim"), f" {note}"), soft_wrap=True)
    contents = f"{row['bytes_read']:,} bytes read" if row["deep"] else "names and sizes alone: --deep reads them"
    scope = (
        f"{counted(row['results'], 'result')}, {counted(row['files'], 'file')} ({contents}) in {row['seconds']:.1f} s"
    )
    if row["faults"]:
        say((row["node"], "bold"), f": {scope}: {len(row['faults'])} links are broken")
    else:
        say((row["node"], "bold"), f": {scope}: every link holds")
    if "rerun" in row:
        out.print(line(row["rerun"]["line"]), soft_wrap=True)
