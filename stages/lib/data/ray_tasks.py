"""Tasks on the Ray cluster of RAY_ADDRESS, as many at a time as it has cores, and some that wait.

A node needs the store alone, no file system that others share. It gets the store's credentials as an argument, which
Ray keeps in its object store: an environment of the job would show them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from stages.core.errors import ConfigError, InfraError
from stages.core.processes import no_core_files
from stages.core.task_objects import elsewhere
from stages.lib.data.task import ATTEMPTS, Job, Receipt, execute

AHEAD = 2
"""Tasks in Ray's hands, for each core of the cluster: those that run, and the next ones. Ray's own bookkeeping, and a
wait for one of them, cost by their number.
"""
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def execute_there(job: Job, credentials: dict[str, str]) -> tuple[int, Receipt]:
    """Do one task on a node of the cluster. Credentials that it has are not replaced."""
    no_core_files()
    if not any(name in os.environ for name in _CREDENTIALS):
        os.environ.update(credentials)
    return job.number, execute(job)


def run(jobs: Sequence[Job]) -> Iterator[tuple[int, Receipt]]:
    """Do the jobs; (number of the job, its receipt) of each as it ends. Raises a task's own error as it is. Ray itself
    starts a task anew when its node is lost.
    """
    try:
        import ray
        from ray import exceptions
    except ImportError as error:
        raise ConfigError(
            "workers = 'ray' needs the package ray, which containers/data/requirements.lock has"
        ) from error
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False)
    task = ray.remote(execute_there).options(max_retries=ATTEMPTS, num_cpus=1, scheduling_strategy="SPREAD")
    credentials = ray.put({name: os.environ[name] for name in _CREDENTIALS if name in os.environ})
    running: list[Any] = []
    waiting = (replace(job, place=elsewhere(job.place)) for job in jobs)
    while True:
        room = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1))) - len(running)
        running += [task.remote(job, credentials) for job in (next(waiting, None) for _ in range(max(0, room))) if job]
        if not running:
            return
        finished, running = ray.wait(running, num_returns=1)
        try:
            yield from ray.get(finished)
        except exceptions.RayTaskError as error:
            raise error.cause from error
        except exceptions.RayError as error:
            raise InfraError(f"the Ray cluster lost a shard {ATTEMPTS} times: {str(error).splitlines()[0]}") from error
