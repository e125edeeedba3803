"""Arrays of jobs that a stage asks for while it runs (`stages/data/arrays.py`): submitted once, followed, cancelled with it.

A stage's event "array" names a file of jobs in its work folder. Beside that file lie `<name>.job`, the array's number, for a control
plane that comes back, and at the end `<name>.over`, which the stage waits for. A stage waits for one array at a time: a new one
means that nobody waits for those before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.launch.base import Job
from flows.launch.slurm_controller import OVER, look_at_elements, queued, run
from flows.launch.slurm_scripts import Ask, Site, array_script, comment
from stages.core.contracts import InfraError


class Arrays:
    """The arrays of one stage's job. `folder`: the launcher's own."""

    def __init__(self, job: Job, site: Site, folder: Path, mark: str) -> None:
        self._job, self._site, self._folder, self._mark = job, site, folder, mark
        self._prefix = f"{comment(job, mark)}:"
        self._current: tuple[str, Path] | None = None
        self._told = ""

    def asked(self, event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Submit the array that an event asks for, or follow it where that was done; events for people."""
        ask = self._checked(event)
        path = Path(ask.jobs)
        self._current = None
        if not path.is_file() or path.with_suffix(".over").exists():  # read again by one that came back
            return
        try:
            number = self._number(ask, path)
        except InfraError as error:
            write(path.with_suffix(".over"), json.dumps({"states": {}, "error": str(error)}))
            yield {"event": "log", "level": "warning", "message": f"no array for {ask.tasks} shards: {error}"}
            return
        self._current = number, path
        jobs = min(ask.tasks, self._site.array_size)
        yield {"event": "log", "level": "info", "message": f"Slurm array {number}: {ask.tasks} shards in {jobs} jobs ({path.stem})"}

    def _checked(self, event: Mapping[str, Any]) -> Ask:
        try:
            ask = Ask.model_validate({name: value for name, value in event.items() if name != "event"})
        except ValidationError as error:
            raise InfraError(f"the stage asked for an array in terms that are not known: {error.errors()[0]['msg']}") from error
        work = str(self._job.request.config.get("work") or "/nowhere")
        if not Path(os.path.normpath(ask.jobs)).is_relative_to(os.path.normpath(work)):
            raise InfraError(f"the stage asked for an array of {ask.jobs}, which is not under its work folder {work}")
        return ask

    def _number(self, ask: Ask, path: Path) -> str:
        """The array's number: of the file, of the queue (where its control plane died at the wrong moment), or of a new one."""
        mine = f"{self._prefix}{path.stem}"
        there = queued(self._prefix)
        if others := [number for number, name in there.items() if name != mine]:
            run("scancel", *others)
        with contextlib.suppress(FileNotFoundError):
            return path.with_suffix(".job").read_text(encoding="utf-8").strip()
        number = next((number for number, name in there.items() if name == mine), None)
        if number is None:
            script = path.with_suffix(".sh")
            write(script, array_script(self._job, self._site, ask, self._folder, self._mark))
            number = run("sbatch", "--parsable", "--requeue", "--export=NONE", str(script)).strip().partition(";")[0]
        write(path.with_suffix(".job"), number)
        return number

    def look(self) -> Iterator[dict[str, Any]]:
        """Ask the controller how the array is; when all of it is over, tell the stage."""
        if self._current is None:
            return
        number, path = self._current
        if (found := look_at_elements(number)) is None:
            return
        states, reason = found
        if states.keys() <= OVER:
            self._current = None
            if path.is_file():
                write(path.with_suffix(".over"), json.dumps({"states": dict(sorted(states.items()))}))
        elif states.keys() <= {*OVER, "PENDING"} and reason != self._told:
            self._told = reason
            yield {"event": "log", "level": "info", "message": f"Slurm array {number} is pending ({reason})"}

    def cancel(self) -> None:
        """Cancel what is left of the job's arrays, whoever submitted them."""
        self._current = None
        with contextlib.suppress(InfraError):
            if there := queued(self._prefix):
                run("scancel", *there)


def cancel_leftovers(job: Job, mark: str) -> None:
    """Cancel arrays of earlier attempts at a job's key: whoever asked for them is gone."""
    pattern = re.compile(rf"moxin:{mark}:.*:{job.request.key[:16]}:\d+:[^:]+")
    if left := [number for number, name in queued(f"moxin:{mark}:").items() if pattern.fullmatch(name)]:
        run("scancel", *left)


def write(path: Path, text: str) -> None:
    """Write a file that only this user reads; it appears whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(partial, path)
