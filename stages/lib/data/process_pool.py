"""Tasks in processes of this machine. Each worker does one task while it stores the files of the one before.

A worker that dies costs the tasks in its hands: they are done again by a new one, while the others go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from stages.core.errors import InfraError
from stages.core.task_objects import objects_at
from stages.lib.data.task import ATTEMPTS, Job, Made, Receipt, compute, finish

UPLOADS = 2
"""Finished tasks of one worker whose files may wait to be stored: they bound its disk."""


class Background:
    """Stores the files of finished tasks beside the next one's work."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, "tasks-upload")
        self._room = threading.BoundedSemaphore(UPLOADS)

    def submit(self, computed: Made, tell: Any) -> None:
        """Store it; `tell(receipt or error)` is called by another thread. Waits while too many are not stored yet."""
        self._room.acquire()

        def act() -> None:
            try:
                tell(finish(computed))
            except BaseException as error:
                tell(error)
            finally:
                self._room.release()

        self._threads.submit(act)

    def close(self) -> None:
        """Wait until all that was handed over is stored: what is done is kept, also where the next task failed."""
        self._threads.shutdown(wait=True)


@dataclass
class _Worker:
    process: Any
    connection: Connection
    held: set[int] = field(default_factory=set)
    """Tasks in its hands: one that it does, others whose files it stores."""
    storing: set[int] = field(default_factory=set)
    """Of these, the others."""

    def take(self, number: int, outcome: Any) -> None:
        """Note what it says: how a task ended, or (None) that it has done it and is free."""
        if outcome is not None:
            self.held.discard(number)
            self.storing.discard(number)
        elif number in self.held:  # else it was stored before it said so
            self.storing.add(number)


class ProcessPool:
    """Worker processes, made when the first tasks come. `stop` ends them."""

    def __init__(self, workers: int) -> None:
        self._number = workers
        self._workers: list[_Worker] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Receipt]]:
        """Do the jobs; (number of the job, its receipt) of each as it ends. Raises a task's own error as it is."""
        by_number = {job.number: job for job in jobs}
        queue, left, deaths = deque(by_number), set(by_number), dict.fromkeys(by_number, 0)
        idle: list[_Worker] = list(self._workers)
        try:
            while left:
                while queue and len(self._workers) < self._number:
                    self._workers.append(_start())
                    idle.append(self._workers[-1])
                while queue and idle:
                    worker, number = idle.pop(), queue.popleft()
                    worker.held.add(number)
                    with contextlib.suppress(OSError):  # it has died: its connection says so below
                        worker.connection.send(by_number[number])
                by_connection = {worker.connection: worker for worker in self._workers}
                for ready in wait(list(by_connection)):
                    worker = by_connection[ready]  # type: ignore[index]
                    try:
                        number, outcome = worker.connection.recv()
                    except (EOFError, OSError):
                        self._workers.remove(worker)
                        idle = [other for other in idle if other is not worker]
                        worker.process.join()
                        objects_at(jobs[0].place).abandon(worker.process.pid)
                        for lost in worker.held & left:
                            deaths[lost] += 1
                            queue.appendleft(lost)
                        self._require_progress(deaths, len(left))
                        continue
                    worker.take(number, outcome)
                    if outcome is None:
                        idle.append(worker)
                        continue
                    if isinstance(outcome, BaseException):
                        self._wait_stored()
                        raise outcome
                    left.discard(number)
                    yield number, outcome
        except BaseException:
            self.stop()
            raise

    def _wait_stored(self) -> None:
        """Wait until what workers have done is stored: it is kept, also where another task failed."""
        while storing := {worker.connection: worker for worker in self._workers if worker.storing}:
            for ready in wait(list(storing)):
                worker = storing[ready]  # type: ignore[index]
                try:
                    worker.take(*worker.connection.recv())
                except (EOFError, OSError):  # it has died
                    worker.storing.clear()

    def _require_progress(self, deaths: dict[int, int], left: int) -> None:
        if max(deaths.values()) >= ATTEMPTS:
            raise InfraError(
                f"workers died {ATTEMPTS} times at one shard (killed, or out of memory) with {left} shards left:"
                " fewer workers, or more memory"
            )

    def stop(self) -> None:
        """End the processes now: nobody wants what they are at."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers = []


def _start() -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, os.getpid()))
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(connection: Connection, parent: int) -> None:
    """A worker's life: (number, None) says that it is free, (number, receipt or error) how a task ended."""
    die_with_parent(parent)
    sending, background = threading.Lock(), Background()

    def tell(number: int, what: Any) -> None:
        with sending, contextlib.suppress(OSError):
            connection.send((number, _portable(what) if isinstance(what, BaseException) else what))

    with contextlib.suppress(EOFError, OSError):
        while True:
            job: Job = connection.recv()
            number = job.number
            try:
                computed = compute(job)
            except BaseException as error:
                tell(number, error)
            else:
                background.submit(computed, lambda what, number=number: tell(number, what))
            tell(number, None)
    background.close()


def _portable(error: BaseException) -> BaseException:
    """An error that another process can have, with a word on where it was raised."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def die_with_parent(parent: int) -> None:
    """A worker ends when the stage does, however that ends (prctl PR_SET_PDEATHSIG, linux/prctl.h)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
