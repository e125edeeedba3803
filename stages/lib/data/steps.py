"""The work of a stage as steps of tasks, done one after another in this process.

    steps = Steps(ctx.tasks)
    results = steps.map("look", look, [{"names": [...]}, ...])    # in the order of the tasks

`stages.lib.data.workers.Pool` does the same in several processes, on a Ray cluster or in arrays of jobs.
"""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.artifacts import FileEntry
from stages.core.context import TaskObjects
from stages.core.errors import InfraError
from stages.core.task_objects import FolderObjects
from stages.lib.data.process_pool import Background
from stages.lib.data.task import Job, Receipt, compute, fingerprint, plain, receipts

Function = Callable[..., Any]


@dataclass(frozen=True)
class Result:
    """What a task left behind: its value, and its files in the order of their paths."""

    value: Any
    files: tuple[FileEntry, ...]

    def file(self, path: str) -> FileEntry:
        """One of its files. Raises KeyError."""
        entry = next((entry for entry in self.files if entry.path == path), None)
        if entry is None:
            raise KeyError(f"the task left no file {path}, but {', '.join(e.path for e in self.files) or 'none'}")
        return entry


class Steps:
    """Runs tasks and keeps their results in `objects` (a path: in files of that folder)."""

    def __init__(self, objects: TaskObjects | Path) -> None:
        self.objects: TaskObjects = FolderObjects(objects) if isinstance(objects, Path) else objects
        self.prefix = ""
        """Of the names of steps, for steps that are done several times."""
        self._before = ""

    def map(
        self,
        name: str,
        function: Function,
        tasks: Sequence[Mapping[str, Any]],
        progress: Callable[[float, float, str], None] | None = None,
    ) -> list[Result]:
        """Run every task once; results in the order of the tasks. A task's own exception is raised here as it is."""
        name = self.prefix + name
        whose = (function.__module__, function.__qualname__, self.objects.place, name)
        jobs = [Job(*whose, n, plain(dict(task)), self._before) for n, task in enumerate(tasks)]
        self._before = hashlib.sha256("".join([name, *map(fingerprint, jobs)]).encode()).hexdigest()
        finished = dict(receipts(jobs, self.objects, name))
        left = [job for job in jobs if job.number not in finished]
        for number, receipt in self._runs(name, left):
            finished[number] = receipt
            if progress:
                progress(len(finished), len(jobs), f"shards ({name})")
        if missing := len(jobs) - len(finished):
            raise InfraError(f"{name}: {missing} shards that were done have no receipt")
        return [Result(finished[job.number].value, finished[job.number].files) for job in jobs]

    def _runs(self, name: str, jobs: list[Job]) -> Iterator[tuple[int, Receipt]]:
        """Do the jobs; their receipts as they come."""
        return _inline(jobs)


def _inline(jobs: list[Job]) -> Iterator[tuple[int, Receipt]]:
    """In this process; the files of one task are stored while the next one is at work."""
    ended: queue.SimpleQueue[tuple[int, Receipt | BaseException]] = queue.SimpleQueue()
    background, running = Background(), 0
    try:
        for job in jobs:
            computed = compute(job)
            background.submit(computed, lambda finished, number=job.number: ended.put((number, finished)))
            running += 1
            while not ended.empty():
                running -= 1
                yield _taken(*ended.get())
        for _ in range(running):
            yield _taken(*ended.get())
    finally:
        background.close()


def _taken(number: int, finished: Receipt | BaseException) -> tuple[int, Receipt]:
    if isinstance(finished, BaseException):
        raise finished
    return number, finished
