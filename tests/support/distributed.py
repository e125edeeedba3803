"""A stage's `run` in several processes (gloo), forked here: PyTorch is loaded already."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stages.core.errors import StageError
from stages.core.testing import LocalCheckpoints
from tests.support.limits import HANG
from tests.support.mortal import Mortal


def run_in_process(
    run: Callable[[Any], None], place: tuple[int, int, int], root: Path, config: Any, inputs: Any, ends: dict[str, Any]
) -> None:
    rank, size, port = place
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ctx = Mortal(root / f"rank-{rank}", config, inputs, stop_after=ends["stop"])
    ctx.checkpoints = LocalCheckpoints(root / "checkpoints")
    ctx.dies_at = ends["dies"] if rank == size - 1 else 0
    outcome = "done"
    try:
        run(ctx)
    except StageError as error:
        outcome = f"{type(error).__name__}: {error}"
    if rank == 0:
        (root / "told.json").write_text(json.dumps({"outcome": outcome, "metrics": ctx.metrics}))
    os._exit(0)


def run_processes(
    run: Callable[[Any], None],
    root: Path,
    size: int,
    config: Any,
    inputs: Any,
    stop: int | None = None,
    dies: int = 0,
) -> tuple[list[dict[str, float]], str]:
    """Run the stage in `size` processes. Metric rows that the first reported, and how it ended.

    stop: rows after which it is asked to stop. dies: step at which the last process is killed.
    """
    root.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.set_num_threads(1)  # a forked process must not wait for OpenMP's threads, which it has not
    fork, ends = multiprocessing.get_context("fork"), {"stop": stop, "dies": dies}
    started = [
        fork.Process(target=run_in_process, args=(run, (rank, size, port), root, config, inputs, ends))
        for rank in range(size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(HANG)
        assert process.exitcode is not None, "a process hangs"
    told = json.loads((root / "told.json").read_text())
    return told["metrics"], told["outcome"]
