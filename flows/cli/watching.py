"""`moxin watch` and `moxin tensorboard`: curves while they grow, and those of before."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.common import (
    ExperimentOption,
    JsonOption,
    ProfileOption,
    SetOption,
    find_node,
    open_ledger,
    out,
    print_json,
    read_profile,
    say,
)
from flows.terminal_text import counted
from stages.core.errors import ConfigError

NodesOption = Annotated[
    list[str], typer.Option("--node", "-n", metavar="NODE", help="of this node alone (repeatable; else of all)")
]


def tensorboard(
    profile: ProfileOption = "tiny",
    node: NodesOption = [],  # noqa: B006
    experiment: Annotated[
        list[str],
        typer.Option("--experiment", "-e", metavar="NAME", help="of this experiment, not the profile (repeatable)"),
    ] = [],  # noqa: B006
    set_: SetOption = [],  # noqa: B006
    logdir: Annotated[
        Path | None, typer.Option("--logdir", help="where the event files go; else a folder of the state folder")
    ] = None,
    logdir_only: Annotated[
        bool, typer.Option("--logdir-only", help="write the event files, and start nothing")
    ] = False,
    port: Annotated[int, typer.Option("--port", help="of TensorBoard, on loopback; 0: any that is free")] = 0,
    json_: JsonOption = False,
) -> None:
    """Collect curves as TensorBoard event files, and show them.

    Of the newest results, wherever they were made, and of what trains now on this machine.
    """
    from flows.live import tensorboard_folder
    from flows.settings import home

    nodes = [find_node(name).name for name in node]
    folder = logdir or home() / "tensorboard-shown"
    with open_ledger() as ledger:
        asked = [read_profile(ledger, profile, name, set_) for name in experiment or [""]]
        collected = tensorboard_folder.collect(ledger, home(), folder, asked, nodes)
    if json_:
        print_json({"logdir": str(folder), "runs": [one.row() for one in collected]})
    else:
        say(f"{counted(len(collected), 'curve')} in {folder}: ", (", ".join(one.run for one in collected), "dim"))
    if not logdir_only:
        _start(folder, port)


def watch(
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    set_: SetOption = [],  # noqa: B006
    metric: Annotated[str, typer.Option("--metric", help="draw this one; else the reward, or the loss")] = "",
    interval: Annotated[float, typer.Option("--interval", min=0.2, help="seconds between two looks")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="look once, and end")] = False,
    json_: JsonOption = False,
) -> None:
    """Watch what runs: every node's state, and the curves.

    Each over that of the node's result before. Ctrl-C ends it; runs go on.
    """
    import time

    from rich.live import Live

    from flows.live.watch import Watch
    from flows.live.watch_view import view
    from flows.settings import home

    with open_ledger() as ledger:
        watched = Watch(ledger, home(), *read_profile(ledger, profile, experiment, set_))
        watched.look()
        if json_:
            print_json(watched.snapshot())
            return
        if once or not out.is_terminal:
            out.print(view(watched.snapshot(), metric, out.width))
            return
        with contextlib.suppress(KeyboardInterrupt), Live(console=out.console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(view(watched.snapshot(), metric, out.width), refresh=True)
                time.sleep(interval)
                watched.look()


def _start(folder: Path, port: int) -> None:
    """Become TensorBoard, on loopback. Raises ConfigError where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            f"TensorBoard is not installed here; the event files are in {folder}. Install it with '{sys.executable} -m"
            f" pip install tensorboard', or, from any environment: tensorboard --host 127.0.0.1 --logdir {folder}"
        )
    sys.stdout.flush()
    arguments = ["--logdir", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *arguments])
