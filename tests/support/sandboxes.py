"""Processes that the sandbox of `execute_code` has left, if any."""

from __future__ import annotations

import os
import time
from pathlib import Path

from stages.execute_code.sandbox import START


def left_over(stage: int | None = None) -> list[int]:
    """Supervisors, first processes and programs of a stage's process, by default this one: they all keep the command
    line that the supervisor was started with.
    """
    words = {START.encode(), str(stage or os.getpid()).encode()}
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if words <= set((entry / "cmdline").read_bytes().split(b"\0")):
                pids.append(int(entry.name))
        except OSError:  # it has ended just now
            continue
    return pids


def none_left(stage: int | None = None) -> bool:
    """Whether all end, given a while."""
    deadline = time.monotonic() + 20
    while left_over(stage) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not left_over(stage)
