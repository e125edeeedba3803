"""Per-shard work on one core, several processes, a Ray cluster or arrays of Slurm jobs: same tasks, same files, same
results.

    with Pool.of(ctx, Dedup.resources(ctx.config)) as pool:
        results = pool.map("sign", sign_shard, [{"shard": ...}, ...])    # in the order of the tasks

A task is a module-level function `function(folder, **arguments) -> value`: it writes files into `folder` and returns a
JSON value. Its folder appears under its final name, with a receipt, in one rename: what a killed worker left is no
result, and costs one shard. A task whose receipt lies there already (an earlier attempt in the same work folder) is not
run again. With Ray and Slurm, the work folder and the inputs must lie on a file system that all nodes see.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.core.artifacts import FileEntry
from stages.core.context import Context
from stages.core.errors import ConfigError, InfraError
from stages.core.files import file_sha256
from stages.core.resources import Resources
from stages.lib.data import job_array
from stages.lib.data.job_array import RequestArray
from stages.lib.data.task import ATTEMPTS, RECEIPT, Job, execute, fingerprint, receipt

ARRAYS = "MOXIN_ARRAYS"
"""Set by the launcher that answers when a stage asks for an array."""
PORTS = (
    *("sources", "documents", "positives", "tokenizer", "raw"),
    *("suites", "image_suites", "conversations", "preferences", "problems", "images"),
)
"""Input ports of the stages that work through a pool: what lies there is part of a work folder's name."""
Function = Callable[..., Any]
Workers = int | Literal["ray", "slurm"]


@dataclass(frozen=True)
class Result:
    """What a task left behind."""

    folder: Path
    value: Any

    @functools.cached_property
    def files(self) -> tuple[FileEntry, ...]:
        """Its files, in path order."""
        paths = (p for p in sorted(self.folder.rglob("*")) if p.is_file() and p.name != RECEIPT)
        return tuple(
            FileEntry(
                path=p.relative_to(self.folder).as_posix(),
                size=p.stat().st_size,
                sha256=file_sha256(p),
                object=str(p.absolute()),
            )
            for p in paths
        )

    def file(self, path: str) -> FileEntry:
        """One of its files. Raises KeyError."""
        entry = next((entry for entry in self.files if entry.path == path), None)
        if entry is None:
            raise KeyError(f"the task left no file {path}, but {', '.join(e.path for e in self.files) or 'none'}")
        return entry


def work_folder(ctx: Context[Any]) -> Path:
    """Where tasks leave their results: scratch, or under the `work` setting a folder for exactly this work.

    What decides the work is the stage, its identity fields and the digests of its inputs, in order.
    """
    if getattr(ctx.config, "work", None) is None:
        return Path(ctx.scratch)
    config = ctx.config
    names = [name for name in PORTS if ctx.inputs(name)]
    inputs = [[name, [i.manifest.digest for i in ctx.inputs(name)]] for name in names]
    identity = json.dumps([type(config).__module__, config.identity(), inputs], sort_keys=True)
    folder = Path(config.work) / hashlib.sha256(identity.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Pool:
    """Runs tasks and keeps their receipts under `folder`. A context manager: its processes live until its end."""

    def __init__(self, folder: Path, workers: Workers = 1, request_array: RequestArray | None = None) -> None:
        self.folder = Path(folder)
        self.workers: Workers = workers
        self._request_array = request_array
        self.prefix = ""
        """Of the names of steps, for steps that are done several times."""
        self._before = ""
        self._processes: ProcessPoolExecutor | None = None
        self._alive: list[Any] = []

    @classmethod
    def of(cls, ctx: Context[Any], need: Resources) -> Pool:
        """The pool of a stage. `need`: what one of its processes needs."""
        if ctx.config.workers == "slurm" and not (os.environ.get(ARRAYS) and ctx.config.work):
            raise ConfigError(
                f"{ctx.node}.workers = 'slurm' needs the slurm launcher (--launcher slurm) and {ctx.node}.work, a"
                " folder that all nodes share"
            )
        return cls(
            work_folder(ctx),
            ctx.config.workers,
            functools.partial(ctx.array, cpus=need.cpus, memory_gib=need.memory_gib),
        )

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def map(
        self,
        name: str,
        function: Function,
        tasks: Sequence[Mapping[str, Any]],
        progress: Callable[[float, float, str], None] | None = None,
    ) -> list[Result]:
        """Run every task once; results in the order of the tasks. A task's own exception is raised here as it is."""
        name = self.prefix + name
        base = self.folder / name
        base.mkdir(parents=True, exist_ok=True)
        whose = (function.__module__, function.__qualname__)
        jobs: list[Job] = [(*whose, str(base / f"{n:06d}"), dict(task), self._before) for n, task in enumerate(tasks)]
        self._before = hashlib.sha256("".join([name, *map(fingerprint, jobs)]).encode()).hexdigest()
        left = [job for job in jobs if receipt(job) is None]
        if len(left) <= 1 or self.workers == 1:
            runs = _inline(left)
        elif self.workers == "slurm":
            runs = self._as_array(name, left)
        else:
            runs = _ray(left) if self.workers == "ray" else self._in_processes(left)
        done = len(jobs) - len(left)
        for _ in runs:
            done += 1
            if progress:
                progress(done, len(jobs), f"shards ({name})")
        values = [receipt(job) for job in jobs]
        if any(value is None for value in values):
            raise InfraError(f"{base}: a shard that was done has no receipt: do all workers see this folder?")
        return [Result(Path(job[2]), value[0]) for job, value in zip(jobs, values, strict=True) if value is not None]

    def _as_array(self, name: str, jobs: list[Job]) -> Iterator[None]:
        assert self._request_array is not None
        return job_array.run(self.folder / "arrays", name, jobs, self._request_array)

    def _in_processes(self, jobs: list[Job]) -> Iterator[None]:
        """In processes of this machine; a worker that dies takes them all with it, so they are made anew for what is
        left.
        """
        left = dict(enumerate(jobs))
        for attempt in range(ATTEMPTS):
            if self._processes is None:
                context = multiprocessing.get_context("spawn")
                self._processes = ProcessPoolExecutor(int(self.workers), context, die_with_parent, (os.getpid(),))
            running = {self._processes.submit(execute, job): n for n, job in left.items()}
            self._alive = list((self._processes._processes or {}).values())  # a broken pool forgets them, dead or not
            try:
                while running:
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        number = running.pop(future)
                        future.result()
                        del left[number]
                        yield
                return
            except BrokenProcessPool as error:
                self._stop()
                if attempt == ATTEMPTS - 1:
                    raise InfraError(
                        f"workers died {ATTEMPTS} times (killed, or out of memory) with {len(left)} shards left: "
                        "fewer workers, or more memory"
                    ) from error
            except BaseException:
                self._stop()
                raise

    def _stop(self) -> None:
        """End the processes now: after an error nobody wants what they are at."""
        if self._processes is None:
            return
        self._processes.shutdown(wait=False, cancel_futures=True)
        for process in self._alive:
            process.kill()
        for process in self._alive:
            process.join()
        self._processes, self._alive = None, []


def _inline(jobs: list[Job]) -> Iterator[None]:
    for job in jobs:
        execute(job)
        yield


def die_with_parent(parent: int) -> None:
    """A worker ends when the stage does, however that ends (prctl PR_SET_PDEATHSIG, linux/prctl.h)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _ray(jobs: list[Job]) -> Iterator[None]:
    """As Ray tasks on the cluster of RAY_ADDRESS. Ray itself starts a task anew when its node is lost."""
    try:
        import ray
        from ray import exceptions
    except ImportError as error:
        raise ConfigError(
            "workers = 'ray' needs the package ray, which containers/data/requirements.lock has"
        ) from error
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False)
    task = ray.remote(execute).options(max_retries=ATTEMPTS, num_cpus=1, scheduling_strategy="SPREAD")
    left = [task.remote(job) for job in jobs]
    while left:
        finished, left = ray.wait(left, num_returns=1)
        try:
            ray.get(finished)
        except exceptions.RayTaskError as error:
            raise error.cause from error
        except exceptions.RayError as error:
            raise InfraError(f"the Ray cluster lost a shard {ATTEMPTS} times: {str(error).splitlines()[0]}") from error
        yield
