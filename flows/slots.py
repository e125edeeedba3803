"""How many nodes run at the same time: as many as the profile says, and one alone on the GPUs of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Callable, Generator
from pathlib import Path

from flows.profile_checks import ONE_MACHINE
from stages.core.errors import Preempted
from stages.core.resources import Resources

LOOK_SECONDS = 1.0
"""Between two looks whether the GPUs are free."""


class Slots:
    """The places of a run's nodes.

    A launcher of one machine gives every node the same GPUs, the first ones, and a second node's memory would not fit
    beside the first's. So of all runs of an installation one node at a time has them. Slurm and Kubernetes share out
    their GPUs themselves.
    """

    def __init__(self, parallel: int, home: Path, stopping: threading.Event, tell: Callable[..., object]) -> None:
        """parallel: nodes of this run at the same time; home: of the installation; tell: `Execution.tell`."""
        self._parallel, self._lock = threading.BoundedSemaphore(parallel), home / "gpus.lock"
        self._stopping, self._tell = stopping, tell

    @contextlib.contextmanager
    def taken(self, node: str, launcher: str, resources: Resources) -> Generator[None]:
        """Wait for a place, and hold it. Raises Preempted when the run is stopped while a node waits for the GPUs."""
        with contextlib.ExitStack() as stack:
            if resources.gpus and launcher in ONE_MACHINE:
                stack.enter_context(self._gpus(node))  # before the run's place, which another node can use meanwhile
            stack.enter_context(self._parallel)
            yield

    @contextlib.contextmanager
    def _gpus(self, node: str) -> Generator[None]:
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        said = False
        with open(self._lock, "a") as stream:  # free when it is closed, also by a death
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if not said:
                    said = True
                    message = "it waits for the GPUs of this machine, which another node has"
                    self._tell(node, "log", level="info", message=message)
                if self._stopping.wait(LOOK_SECONDS):
                    raise Preempted(f"{node}: the run is stopping")
            yield
