"""Trains with engine `colossalai` on what it is told, a JSON line each on standard input; runs in that engine's
environment.

Colossal-AI takes seven seconds to import: this does it once, and forks the processes of every run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from stages.core.artifacts import Model, OptimizerState, Tokenizer, TokenShards
from stages.core.errors import StageError
from stages.core.testing import LocalCheckpoints, local_artifact
from stages.lib.training.backends import colossalai
from stages.pretrain import run as pretrain
from stages.pretrain.spec import PretrainConfig
from tests.support.colossal import chunks, held
from tests.support.limits import HANG
from tests.support.mortal import Mortal

TYPES: dict[str, Any] = {
    "tokens": TokenShards,
    "tokenizer": Tokenizer,
    "parent": Model,
    "parent_moments": OptimizerState,
}


def _rank(rank: int, port: int, task: dict[str, Any]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(task["size"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    root = Path(task["root"])
    sys.stderr = open(root / f"rank-{rank}.log", "w", buffering=1)  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 1)
    os.dup2(sys.stderr.fileno(), 2)
    inputs = {
        port: [local_artifact(TYPES[port], Path(folder), facets)] for port, (folder, facets) in task["inputs"].items()
    }
    ctx = Mortal(root / f"rank-{rank}", PretrainConfig(**task["config"]), inputs, stop_after=task["stop"])
    ctx.checkpoints = LocalCheckpoints(root / "checkpoints")
    ctx.dies_at = task["dies"] if rank == task["size"] - 1 else 0
    pretrain.compute_device = lambda *asked: torch.device("cpu")  # half precision too: slow, but exact
    chunks.install()
    held.install()
    colossalai.INITIAL_SCALE = task["scale"] or colossalai.INITIAL_SCALE
    try:
        pretrain.run(ctx)
        outcome = "done"
    except StageError as error:
        outcome = f"{type(error).__name__}: {error}"
    except BaseException:
        outcome = traceback.format_exc()
    (root / f"told-{rank}.json").write_text(
        json.dumps({"outcome": outcome, "metrics": ctx.metrics, "stats": ctx.stats, "held": held.HELD})
    )
    os._exit(0)


def train(task: dict[str, Any]) -> dict[str, Any]:
    """Run one task in `size` processes; what the first told, and how each ended."""
    Path(task["root"]).mkdir(parents=True, exist_ok=True)
    for old in Path(task["root"]).glob("told-*.json"):
        old.unlink()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=_rank, args=(rank, port, task)) for rank in range(task["size"])]
    for process in started:
        process.start()
    for process in started:
        process.join(HANG)
        process.kill()
    told = [Path(task["root"]) / f"told-{rank}.json" for rank in range(task["size"])]
    ends = [
        json.loads(path.read_text())
        if path.is_file()
        else {"outcome": "killed", "metrics": [], "stats": {}, "held": {}}
        for path in told
    ]
    return {**ends[0], "outcomes": [end["outcome"] for end in ends], "held": [end["held"] for end in ends]}


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked process must not wait for OpenMP's threads, which it has not
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(train(json.loads(line))) + "\n")
