"""Training in several processes on one machine: torchrun starts them, the first tells the stage what happens, line by line.

    python -m torch.distributed.run --standalone --nproc-per-node N -m stages.vlm.workers <job folder>

The job folder holds everything that they need (`job.json`, `rows.npz`); a file `stop` in it asks them to stop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stages.core.contracts import Context, ExitClass, InfraError, Preempted, StageError
from stages.vlm.spec import VlmConfig

STOP = "stop"
WEIGHTS = "weights.pt"
TIMEOUT = timedelta(minutes=10)
"""Of a collective: a process that died must not leave the others waiting for ever."""
_ERRORS = {kind.exit_class: kind for kind in StageError.__subclasses__()}


class LineReporter:
    """The loop's reporter in the first process: JSON lines on standard output."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def stopping(self) -> bool:
        return (self._folder / STOP).exists()

    def _tell(self, event: str, **values: Any) -> None:
        sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
        sys.stdout.flush()

    def metric(self, step: int, **values: float) -> None:
        self._tell("metric", step=step, values=values)

    def progress(self, done: float, total: float | None = None, unit: str = "") -> None:
        self._tell("progress", done=done, total=total, unit=unit)

    def log(self, message: str, level: str = "info") -> None:
        self._tell("log", message=message, level=level)

    def save(self, step: int, folder: Path) -> None:
        """Hand the checkpoint over, and wait until it is published."""
        self._tell("checkpoint", step=step, folder=str(folder))
        sys.stdin.readline()

    def done(self, **values: Any) -> None:
        """The last line."""
        self._tell("done", **values)


def train(ctx: Context[VlmConfig], folder: Path) -> dict[str, Any]:
    """Run the job in `folder` in ctx.config.processes processes; returns what the first one reports at the end.

    Raises what they raised.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ctx.config.processes)]
    environment = os.environ | {"OMP_NUM_THREADS": str(ctx.config.threads), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with subprocess.Popen(
        [*command, "-m", "stages.vlm.workers", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            last = _relay(ctx, folder, process)
        finally:
            if process.poll() is None:
                process.terminate()
    if last is None:
        raise InfraError(f"{ctx.node}: the training processes ended with status {process.returncode} and without a word; see the log")
    exit_class = ExitClass(last["exit"])
    if exit_class is not ExitClass.OK:
        raise _ERRORS.get(exit_class, InfraError)(last["message"])
    return last


def _relay(ctx: Context[VlmConfig], folder: Path, process: subprocess.Popen[str]) -> dict[str, Any] | None:
    assert process.stdout is not None
    assert process.stdin is not None
    for line in process.stdout:
        if ctx.stopping:
            (folder / STOP).touch()
        try:
            event = json.loads(line)
        except ValueError:  # something that a library printed
            sys.stderr.write(line)
            continue
        if event["event"] == "metric":
            ctx.metric(event["step"], **event["values"])
        elif event["event"] == "progress":
            ctx.progress(event["done"], event["total"], event["unit"])
        elif event["event"] == "log":
            ctx.log(event["message"], event["level"])
        elif event["event"] == "checkpoint":
            ctx.checkpoints.save(event["step"], Path(event["folder"]))
            process.stdin.write("\n")
            process.stdin.flush()
        elif event["event"] == "done":
            return event
    return None


def main(folder: Path) -> None:
    """One of the processes."""
    from stages.vlm.run import make_trainer

    gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpu else "gloo", timeout=TIMEOUT)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    config = VlmConfig.model_validate(job["config"])
    rank = dist.get_rank()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu and config.device != "cpu" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(config.threads)
    reporter = LineReporter(folder)
    try:
        trainer = make_trainer(reporter, config, job, folder, device)
        trainer.run(Path(job["resume"]) if job["resume"] else None)
        weights = trainer.weights()
        if rank == 0:
            torch.save(weights, folder / WEIGHTS)
            reporter.done(exit=ExitClass.OK, loss=trainer.loss, seconds=trainer.seconds, tokens=trainer.tokens, steps=trainer.steps)
    except StageError as error:
        if rank == 0:
            reporter.done(exit=error.exit_class, message=str(error))
        if not isinstance(error, Preempted):
            sys.exit(error.exit_class.code)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
