"""Run an engine as a process tree under a stage's context: follow its log, stop it in time, say how it ended.

The tree is a process group of its own behind `programs/guard.py`, which ends it when the stage is gone, whatever became
of that.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core.context import Context
from stages.core.errors import ExitClass, Preempted, StageError
from stages.core.processes import without_secrets

GUARD = Path(__file__).parent / "programs" / "guard.py"
GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL: less than the runtime's own grace (25 s), which has to cover the last upload too."""
TAIL = 400
"""Lines of log that are kept to explain a failure."""
OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemoryError|cannot allocate memory", re.IGNORECASE)
ERROR = re.compile(r"^\s*(?:\[rank\d+\]:\s*)?([\w.]*(?:Error|Exception|Interrupt)\b.*)")


class StepClock:
    """Seconds between the steps that an engine tells of: the first is not known apart from its start."""

    def __init__(self) -> None:
        self._ended = 0.0

    def lap(self) -> dict[str, float]:
        """A step has ended: `step_seconds`, for its row; {} of the first."""
        before, self._ended = self._ended, time.monotonic()
        return {"step_seconds": round(self._ended - before, 3)} if before else {}


class EngineError(StageError):
    """An engine failed for a reason that is not known to be anybody's configuration."""

    exit_class = ExitClass.BUG


def environment(scratch: Path, **values: str) -> dict[str, str]:
    """Environment of an engine: this one's, without secrets and Python path, offline, with its caches in the scratch
    folder.
    """
    kept = {k: v for k, v in without_secrets().items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    fixed = {
        "HF_HOME": str(scratch / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
        "PYTHONUNBUFFERED": "1",
    }
    return {**kept, **fixed, **values}


def run(
    ctx: Context[Any],
    engine: str,
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
    grace: float = GRACE_SECONDS,
) -> None:
    """Run to the end. on_line gets each line of its log; on_tick is called about once a second, and after the end.

    Raises Preempted when asked to stop or when a signal ended it, MemoryError when its log says so, EngineError
    otherwise.
    """
    guarded = [sys.executable, str(GUARD), str(grace), *command]
    process = subprocess.Popen(
        guarded,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=ctx.scratch,
        text=True,
        errors="replace",
        process_group=0,
    )
    lines: queue.Queue[str | None] = queue.Queue(maxsize=10_000)
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    tail: deque[str] = deque(maxlen=TAIL)
    try:
        _follow(ctx, process, lines, tail, on_line, on_tick, grace)
    finally:
        status = _end(process)
    on_tick()
    if status:
        raise failure(engine, status, tail)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Pass lines on (a progress bar's carriage return ends one, too), and None at the end."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.rstrip())
    lines.put(None)


def _follow(
    ctx: Context[Any],
    process: subprocess.Popen[str],
    lines: queue.Queue[str | None],
    tail: deque[str],
    on_line: Callable[[str], None],
    on_tick: Callable[[], None],
    grace: float,
) -> None:
    ticked = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            line = ""
        if line is None or (not line and _ended(process) and lines.empty()):
            return
        if line:
            tail.append(line)
            on_line(line)
        if ctx.stopping:
            _stop(process, grace)
            while (line := _next(lines)) is not None:
                on_line(line)
            on_tick()
            raise Preempted(
                "the engine was stopped on request; the next run goes on from its last checkpoint, if there is one"
            )
        if time.monotonic() - ticked >= 1:
            ticked = time.monotonic()
            on_tick()


def _next(lines: queue.Queue[str | None]) -> str | None:
    """The next line of an engine that has ended; None at the end, or when somebody keeps its log open."""
    try:
        return lines.get(timeout=0.5)
    except queue.Empty:
        return None


def _ended(process: subprocess.Popen[str]) -> bool:
    """Whether the guard has ended. It is not waited for: until then its number names the group and nothing else."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _stop(process: subprocess.Popen[str], grace: float) -> None:
    """SIGTERM to all, then wait for the guard, which ends with the command."""
    os.killpg(process.pid, signal.SIGTERM)
    limit = time.monotonic() + grace
    while not _ended(process) and time.monotonic() < limit:
        time.sleep(0.05)


def _end(process: subprocess.Popen[str]) -> int:
    """Kill what is left of the group, and return the exit status."""
    if not _ended(process):
        _wait_briefly(process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    return status


def _wait_briefly(process: subprocess.Popen[str]) -> None:
    """The log's end comes a moment before the guard's; a group that is being thrown away gets no longer than that."""
    limit = time.monotonic() + 2
    while not _ended(process) and time.monotonic() < limit:
        time.sleep(0.02)


def number(text: str) -> float | None:
    """A number of an engine's log; None where it is none: what two processes write at once runs into one line."""
    try:
        return float(text)
    except ValueError:
        return None


def failure(engine: str, status: int, tail: Sequence[str]) -> Exception:
    """What to raise for an exit status and the end of a log."""
    for line in tail:
        if OUT_OF_MEMORY.search(line):
            return MemoryError(f"{engine}: {line.strip()[:300]}")
    number = -status if status < 0 else status - 128
    if number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP):
        return Preempted(f"{engine} was ended by signal {number}: the kernel for want of memory, or somebody")
    errors = [match.group(1) for line in tail if (match := ERROR.match(line))]
    said = errors[0] if errors else (tail[-1].strip() if tail else "it said nothing")
    return EngineError(f"{engine} ended with status {status}: {said[:300]}")
