"""Arrays of jobs that a stage asks for while it runs (`stages/lib/data/job_array.py`): submitted once, followed,
cancelled with it.

A stage's event "array" says where in the store its jobs lie, beside its tasks' results; the answer that it waits for
goes there too. In the launcher's own folder lies `<base>-<name>.job`, the array's number, for a control plane that
comes back. A stage waits for one array at a time: a new one means that nobody waits for those before it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.launch.array_request import ArrayRequest
from flows.launch.base import Job
from flows.launch.slurm_controller import FINISHED, array_states, queued_jobs, run
from flows.launch.slurm_scripts import Site, array_base, array_script, comment
from stages.core.errors import InfraError
from stages.core.files import write_atomically


class JobArrays:
    """The arrays of one stage's job. `folder`: the launcher's own."""

    def __init__(self, job: Job, site: Site, folder: Path, installation: str) -> None:
        self._job, self._site, self._folder, self._installation = job, site, folder, installation
        self._prefix = f"{comment(job, installation)}:"
        self._current: tuple[str, ArrayRequest] | None = None
        self._reported_reason = ""

    def submit(self, event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Submit the array that an event asks for, or follow it where that was done; events for people."""
        request = ArrayRequest.checked(event, self._job)
        try:
            awaited = request.awaited()
        except (InfraError, OSError) as error:  # the store or the shared folder is away: the stage asks again
            yield request.warning(_away(error))
            return
        before, self._current = self._current, None
        if not awaited:  # read again by one that came back
            return
        try:
            number = self._submit_or_find(request)
        except InfraError as error:
            yield request.refuse(error)
            return
        except OSError as error:  # the shared folder is away: the stage asks again
            yield request.warning(_away(error))
            return
        self._current = number, request
        if before == self._current:  # asked again, lest its event was lost
            return
        jobs = min(request.tasks, self._site.array_size)
        yield {
            "event": "log",
            "level": "info",
            "message": f"Slurm array {number}: {request.tasks} shards in {jobs} jobs ({request.name})",
        }

    def _submit_or_find(self, request: ArrayRequest) -> str:
        """The array's number: of the file, of the queue (where its control plane died at the wrong moment), or of a new
        one.
        """
        own_comment = f"{self._prefix}{request.name}"
        jobs = queued_jobs(self._prefix)
        if others := [number for number, name in jobs.items() if name != own_comment]:
            run("scancel", *others)
        base = array_base(self._job, self._folder, request)
        with contextlib.suppress(FileNotFoundError):
            return Path(f"{base}.job").read_text(encoding="utf-8").strip()
        number = next((number for number, name in jobs.items() if name == own_comment), None)
        if number is None:
            script = Path(f"{base}.sh")
            write(script, array_script(self._job, self._site, request, self._folder, self._installation))
            number = run("sbatch", "--parsable", "--requeue", "--export=NONE", str(script)).strip().partition(";")[0]
        write(Path(f"{base}.job"), number)
        return number

    def poll(self) -> Iterator[dict[str, Any]]:
        """Ask the controller how the array is; when all of it is over, tell the stage."""
        if self._current is None:
            return
        number, request = self._current
        if (polled := array_states(number)) is None:
            return
        states, reason = polled
        if states.keys() <= FINISHED:
            with contextlib.suppress(InfraError, OSError):  # the store is away: told at the next look
                request.answer(states)
                self._current = None
                for suffix in (".job", ".sh"):
                    with contextlib.suppress(OSError):
                        Path(f"{array_base(self._job, self._folder, request)}{suffix}").unlink(missing_ok=True)
        elif states.keys() <= {*FINISHED, "PENDING"} and reason != self._reported_reason:
            self._reported_reason = reason
            yield {"event": "log", "level": "info", "message": f"Slurm array {number} is pending ({reason})"}

    def cancel(self) -> None:
        """Cancel what is left of the job's arrays, whoever submitted them."""
        self._current = None
        with contextlib.suppress(InfraError):
            if jobs := queued_jobs(self._prefix):
                run("scancel", *jobs)


def _away(error: InfraError | OSError) -> InfraError:
    if isinstance(error, InfraError):
        return error
    return InfraError(f"cannot use {error.filename or 'the shared folder'}: {error.strerror or error}")


def cancel_leftovers(job: Job, installation: str) -> None:
    """Cancel jobs of earlier attempts at a job's key, and their arrays: whoever followed them is gone, and nothing that
    they save counts any more. `sbatch` may have submitted one and not said so.
    """
    if job.request.lease.epoch == 1:
        return
    pattern = re.compile(rf"moxin:{installation}:.*:{job.request.key[:16]}:\d+(:[^:]+)?")
    if leftovers := [
        number for number, name in queued_jobs(f"moxin:{installation}:").items() if pattern.fullmatch(name)
    ]:
        run("scancel", *leftovers)


def write(path: Path, text: str) -> None:
    """Write a file that only this user reads; it appears whole."""
    write_atomically(path, text, mode=0o600)
