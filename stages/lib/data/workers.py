"""Per-shard work on one core, several processes, a Ray cluster or arrays of jobs: same tasks, same files, same results.

    with Pool.of(ctx, Dedup.resources(ctx.config)) as pool:
        results = pool.map("sign", sign_shard, [{"shard": ...}, ...])    # in the order of the tasks
        results[0].file("pairs")     # FileEntry: for the arguments of the next step's tasks, or for ctx.link

A task is a module-level function `function(folder, **arguments) -> value`: it writes files into `folder` and returns a
JSON value. Its files become objects (`Context.tasks`) and leave the local disk while the next task is at work; then a
receipt says what they are. What a killed worker left is no result, and costs one shard. A task whose receipt is there
already, of an earlier attempt on whatever machine, is not run again. A task carries what it works on (entries of files
may stand in its arguments), never the list of all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from stages.core.context import Context, TaskObjects
from stages.core.errors import ConfigError
from stages.core.resources import Resources
from stages.lib.data import job_array, ray_tasks
from stages.lib.data.job_array import RequestArray
from stages.lib.data.process_pool import ProcessPool
from stages.lib.data.steps import Result, Steps
from stages.lib.data.task import Job, Receipt

__all__ = ["Pool", "Result", "Workers"]

ARRAYS = "MOXIN_ARRAYS"
"""Set by the launcher that answers when a stage asks for an array."""
BY_ARRAYS = ("slurm", "kubernetes")
Workers = int | Literal["ray", "slurm", "kubernetes"]


class Pool(Steps):
    """Runs tasks and keeps their results in `objects` (a path: in files of that folder). A context manager: its
    processes live until its end.
    """

    def __init__(
        self, objects: TaskObjects | Path, workers: Workers = 1, request_array: RequestArray | None = None
    ) -> None:
        super().__init__(objects)
        self.workers: Workers = workers
        self._request_array = request_array
        self._processes: ProcessPool | None = None

    @classmethod
    def of(cls, ctx: Context[Any], need: Resources) -> Pool:
        """The pool of a stage. `need`: what one of its processes needs."""
        by = ctx.config.workers
        if by in BY_ARRAYS and not os.environ.get(ARRAYS):
            raise ConfigError(f"{ctx.node}.workers = '{by}' needs the {by} launcher (--launcher {by})")
        return cls(ctx.tasks, by, functools.partial(ctx.array, cpus=need.cpus, memory_gib=need.memory_gib))

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._processes is not None:
            self._processes.stop()

    def _runs(self, name: str, jobs: list[Job]) -> Iterator[tuple[int, Receipt]]:
        if len(jobs) <= 1 or self.workers == 1:
            return super()._runs(name, jobs)
        if self.workers in BY_ARRAYS:
            assert self._request_array is not None
            return job_array.run(self.objects, name, jobs, self._request_array)
        if self.workers == "ray":
            return ray_tasks.run(jobs)
        self._processes = self._processes or ProcessPool(int(self.workers))
        return self._processes.run(jobs)
