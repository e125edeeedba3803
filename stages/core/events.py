"""The events of a stage, JSON lines on standard output, and which of its processes this is."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

from stages.core.errors import ExitClass


def own_rank() -> int:
    """Which of a stage's processes this is (torchrun's RANK). Only the first tells, publishes and commits."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes this stage has (torchrun's WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Events:
    """The event stream. Owns the real standard output; everything else in the process prints to standard error."""

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")
        self._lock = threading.Lock()
        self._last_progress = 0.0

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event. A reader that is gone, or a full disk under a log file, is no reason to fail: the stop comes
        by another way.

        A process that is not the first of its stage says why it failed, as a log line, and nothing else.
        """
        if (rank := own_rank()) > 0:
            if event != "done" or fields["exit"] in (ExitClass.OK, ExitClass.PREEMPTED):
                return
            event, fields = "log", {"level": "error", "message": f"process {rank}: {fields['message']}"}
        line = json.dumps({"event": event, **fields}, ensure_ascii=False, default=str)
        with self._lock:
            try:
                self._stream.write(line + "\n")
            except (OSError, ValueError):
                return

    def progress(self, done: float, total: float | None, unit: str) -> None:
        """At most five progress events a second, and always the last one."""
        if (total is not None and done >= total) or time.monotonic() - self._last_progress >= 0.2:
            self._last_progress = time.monotonic()
            self.emit("progress", done=done, total=total, unit=unit)
