"""`moxin adopt`: weights or data that others made, as a node's result."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.common import (
    ExperimentOption,
    JsonOption,
    NodeArgument,
    ProfileOption,
    SetOption,
    find_node,
    open_ledger,
    print_json,
    progress,
    read_profile,
    say,
)
from flows.terminal_text import counted


def adopt(
    node: NodeArgument,
    place: Annotated[
        str, typer.Argument(help="a folder, hf://OWNER/NAME[@REVISION], or s3://BUCKET/PREFIX", metavar="PLACE")
    ],
    tag: Annotated[str, typer.Option("--tag", metavar="TAG", help="a name for it, by which gc keeps it")] = "",
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="what it is kept for")] = "",
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    set_: SetOption = [],  # noqa: B006
    json_: JsonOption = False,
) -> None:
    """Make weights or data of others a node's result.

    They are checked first. A run takes them with --set adopt.NODE=TAG.
    """
    from flows import outside
    from flows.experiments import tags
    from flows.settings import Settings

    target = find_node(node)
    if tag:
        tags.check(tag)
    settings = Settings.load()
    with open_ledger(settings) as ledger, progress(json_) as tell:
        _, values = read_profile(ledger, profile, experiment, set_)
        done = outside.adopt(ledger, target, values.configs[target.name], place, settings.home / "adopt", tell)
        result = done.result
        if tag:
            tags.give(ledger, tag, result, why)
    if json_:
        print_json({"new": done.new, "tag": tag or None} | result.model_dump(mode="json"))
        return
    say(
        (result.node, "bold"),
        f" {result.key[:12]}: adopted from {result.config['place']}" + ("" if done.new else " (it was there already)"),
    )
    for port, manifest in result.outputs.items():
        facets = " ".join(f"{name}={str(value)[:18]}" for name, value in sorted(manifest.facets.items()))
        license = result.config["license"][port] or "not stated"
        size = f"{counted(manifest.count, 'file')}, {manifest.size:,} bytes"
        say(f"  {port}: {manifest.type}, {size}, licence {license}  ", (facets, "dim"))
    say(f"take it with: moxin run --set adopt.{result.node}={tag or result.key[:12]} --select NODE")
