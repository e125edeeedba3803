"""A training that takes no step any more ends by itself, as preempted, with the stacks of all its processes in the log.

A process that hangs is there, answers signals of life, and keeps all others waiting. Each process counts for itself how
long its last step is ago: all wait for each other in every step, so all come to the end of their patience together, and
each writes down where its threads are. Checkpoints, measurements and what comes before the second step are not counted:
they may take long, and what they wait for has limits of its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from statistics import median
from typing import Any

from stages.core.context import Context
from stages.core.stopping import cut_off

LOOK = timedelta(seconds=1)
"""Between two looks. Looks are counted, not time: a machine that slept has not stalled."""
STEPS = 20
"""Median steps that a stall lasts at least, whatever the configuration says."""
PARTING = timedelta(seconds=5)
"""For the others to write down their stacks before this process's end ends them too."""
LOCKED = timedelta(seconds=30)
"""After which a process's stacks are written from outside Python, whose lock some library then keeps."""
WHY = b"the training stalled: this process ends, the next attempt goes on from the last checkpoint\n"


class StallWatch:
    """Of one process, while it trains."""

    def __init__(
        self,
        ctx: Context[Any],
        seconds: float,
        rank: int = 0,
        alone: bool = True,
        leave: Callable[[bytes], object] = cut_off,
        descriptor: int = 2,
    ) -> None:
        """seconds: without a step that are a stall; 0: never. alone: no other process would end this one. leave: ends
        this process. descriptor: where stacks are written.
        """
        self._ctx, self._seconds, self._rank, self._alone = ctx, seconds, rank, alone
        self._leave, self._descriptor = leave, descriptor
        self._took: deque[float] = deque(maxlen=64)
        self._since = time.monotonic()
        self._looks, self._paused = 0, 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> StallWatch:
        if self._seconds:
            self._thread = threading.Thread(target=self._look, name="stall-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(PARTING.total_seconds())
            faulthandler.cancel_dump_traceback_later()

    def step(self) -> None:
        """A step is done. From the second on, the next one is waited for."""
        now = time.monotonic()
        self._took.append(now - self._since)
        self._since, self._looks = now, 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile no step is expected."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self._since, self._looks = time.monotonic(), 0

    @property
    def limit(self) -> float:
        """Seconds without a step that are a stall."""
        return max(self._seconds, STEPS * median(self._took)) if self._took else self._seconds

    # --- in the thread --------------------------------------------------------------------------------------------

    def _look(self) -> None:
        while not self._over.wait(LOOK.total_seconds()):
            with contextlib.suppress(RuntimeError):  # the steps' times change while the median is taken
                limit = self.limit
                faulthandler.dump_traceback_later(
                    limit + LOCKED.total_seconds(), exit=self._alone, file=self._descriptor
                )
                self._looks += len(self._took) > 1 and not self._paused
                if self._looks * LOOK.total_seconds() >= limit:
                    self._stalled(limit)
                    return

    def _stalled(self, limit: float) -> None:
        line = f"process {self._rank}: no step for {limit:.0f} s; where its threads are:\n"
        os.write(self._descriptor, line.encode())
        faulthandler.dump_traceback(self._descriptor, all_threads=True)
        message = (
            f"no step for {limit:.0f} s: the training stalled; the stacks of its processes are in their error output"
        )
        # whoever hangs may hold the lock that the line needs
        teller = threading.Thread(target=self._ctx.log, args=(message, "error"), daemon=True)
        teller.start()
        teller.join(1)
        time.sleep(PARTING.total_seconds())
        self._leave(WHY)
