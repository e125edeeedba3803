"""`moxin tag`: names for single results, which `moxin gc` keeps."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.common import (
    ExperimentOption,
    JsonOption,
    KeyOption,
    ProfileOption,
    SetOption,
    open_ledger,
    out,
    print_json,
    read_result,
    say,
)
from stages.core.errors import ConfigError


def tag(
    node: Annotated[str, typer.Argument(help="name of a node")] = "",
    name: Annotated[str, typer.Argument(help="the tag")] = "",
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    set_: SetOption = [],  # noqa: B006
    key: KeyOption = "",
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="what it is kept for")] = "",
    move: Annotated[bool, typer.Option("--move", help="although another result has this tag")] = False,
    remove: Annotated[str, typer.Option("--remove", metavar="TAG", help="take this tag away; its result stays")] = "",
    list_: Annotated[bool, typer.Option("--list", help="list the tags")] = False,
    json_: JsonOption = False,
) -> None:
    """Give a node's result a name that stays with it.

    `--key TAG` reads it; `gc` keeps it, and what it was made from.
    """
    from flows.console import rows_table
    from flows.experiments import tags

    if [bool(node or name), bool(remove), list_].count(True) != 1 or bool(node) != bool(name):
        raise ConfigError("tag: give a node and a tag, or --list, or --remove TAG")
    with open_ledger() as ledger:
        if node:
            result = read_result(ledger, node, profile, experiment, set_, key)
            records = [tags.give(ledger, name, result, why, move)]
        else:
            records = [tags.take(ledger, remove)] if remove else ledger.tags()
    if json_:
        print_json({"tags": [each.model_dump(mode="json") for each in records], "removed": bool(remove)})
    elif not list_:
        say(
            (records[0].name, "bold"),
            f"{' taken from' if remove else ':'} {records[0].node} {records[0].key[:12]}",
        )
    elif not records:
        say("no tags yet; give one with: moxin tag NODE TAG")
    else:
        out.print(
            rows_table(
                [
                    {
                        "tag": each.name,
                        "node": each.node,
                        "key": each.key[:12],
                        "by": each.created_by,
                        "given": each.created_at[:16].replace("T", " "),
                        "why": each.why or "-",
                    }
                    for each in records
                ]
            )
        )
