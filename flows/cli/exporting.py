"""`moxin export`: a model or a data set out to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.common import (
    ExperimentOption,
    JsonOption,
    KeyOption,
    NodeArgument,
    ProfileOption,
    SetOption,
    open_ledger,
    out,
    print_json,
    progress,
    read_result,
)
from flows.terminal_text import counted, line


def export(
    node: NodeArgument,
    folder: Annotated[Path, typer.Argument(help="where to: a new folder, or an empty one", metavar="DIR")],
    port: Annotated[str, typer.Option("--port", metavar="PORT", help="which output, where the node has several")] = "",
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    set_: SetOption = [],  # noqa: B006
    key: KeyOption = "",
    json_: JsonOption = False,
) -> None:
    """Write a node's result to a folder, each file verified.

    A model or a data set. The same call again goes on where one was interrupted.
    """
    from flows import export as folders

    with open_ledger() as ledger, progress(json_) as tell:
        result = read_result(ledger, node, profile, experiment, set_, key)
        done = folders.write(ledger, result, port, folder, tell)
    if json_:
        row = {name: getattr(done, name) for name in ("folder", "port", "digest", "files", "bytes", "kept")}
        print_json({"node": result.node, "key": result.key, **row})
        return
    before = f"; {counted(done.kept, 'file')} of an earlier call kept" if done.kept else ""
    out.print(
        line(
            (f"{result.node}.{done.port}", "bold"),
            f": {counted(done.files, 'file')}, {done.bytes:,} bytes in {done.folder}{before}",
        ),
        soft_wrap=True,
    )
