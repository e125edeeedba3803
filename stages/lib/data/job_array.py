"""Per-shard tasks as an array of jobs, which the launcher submits when the stage asks for it: `workers = "slurm"`.

The stage writes its jobs beside its tasks' results (`Context.tasks`), `arrays/<name>/<part>.json`, and says so on its
event stream (`Context.array`). The launcher submits the array, follows it, and writes `arrays/<name>.state/over.json`
when no element is left: the states in which they ended, or why there is no array. An element runs

    python -m stages.lib.data.job_array PLACE NAME ELEMENT ELEMENTS

which does every ELEMENTS-th part from ELEMENT on, but for jobs whose receipts are there. All that it needs is the
store. The error of a job itself is left beside the answer, and is the stage's. A job without a receipt was lost with
its element, and is asked for again.
"""

from __future__ import annotations

import functools
import json
import secrets
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stages.core.context import TaskObjects
from stages.core.errors import ConfigError, ExitClass, InfraError, InputError, StageError
from stages.core.processes import no_core_files
from stages.core.secrets_file import take_secrets
from stages.core.store_errors import Damaged
from stages.core.task_objects import ARRAYS, OVER, elsewhere, objects_at, state_of
from stages.lib.data.task import ATTEMPTS, READERS, Job, Receipt, execute, receipt, receipts

RequestArray = Callable[[str, str, int], None]
"""Asks the launcher for an array: the place, its name there, and how many elements it can have at most."""
SECONDS = 0.5
"""Between two looks at the receipts; and ten times that, once they have been looked at for a minute."""
ASK_SECONDS = 300.0
"""Between two requests for the same array."""
PATIENCE = 5.0
"""Seconds before a stage asks again when the launcher could not submit; twice as many each time."""
PARTS = 4096
"""Documents that the jobs of an array are spread over: an element reads no more than its own."""


def run(
    objects: TaskObjects, name: str, jobs: Sequence[Job], request_array: RequestArray
) -> Iterator[tuple[int, Receipt]]:
    """Have the jobs of a step done; (number of the job, its receipt) of each. Raises a job's own error, InfraError when
    jobs are lost again and again.
    """
    left, answer = {job.number: job for job in jobs}, {}
    used: list[str] = []
    for attempt in range(ATTEMPTS):
        if answer.get("error"):
            time.sleep(PATIENCE * 2 ** (attempt - 1))
        used.append(f"{name}-{secrets.token_hex(4)}")
        parts = write_jobs(objects, used[-1], list(left.values()))
        ask = functools.partial(request_array, elsewhere(objects.place), used[-1], parts)
        ask()
        answer = yield from _follow(objects, used[-1], left, ask)
        if not left:
            for array in used:
                objects.delete([row.key for row in objects.list(f"{ARRAYS}/{array}")])
            return
    raise InfraError(
        f"{len(left)} shards ({name}) are left after {ATTEMPTS} arrays: {_why(answer)}; what they printed is in the"
        f" launcher's log of {used[-1]}"
    )


def _follow(
    objects: TaskObjects, array: str, left: dict[int, Job], ask: Callable[[], None]
) -> Generator[tuple[int, Receipt], None, dict[str, Any]]:
    """Wait until the launcher answers, or all is done; yields each job that is, and takes it out of `left`. Returns the
    answer. ask: asks for the array, now and then once more: a log may be rotated before the launcher reads it, and one
    that has the array already lets it be.
    """
    started = asked = time.monotonic()
    step = next(iter(left.values())).step
    while True:
        answer = _answer(objects, array)
        # after the answer: nothing comes later than that, but for lists
        done = list(receipts(left.values(), objects, step, by_name=answer is not None))
        _raise_error(objects, array)
        for number, document in done:
            del left[number]
            yield number, document
        if answer is not None or not left:
            return answer or {}
        if time.monotonic() - asked > ASK_SECONDS:
            asked = time.monotonic()
            ask()
        time.sleep(SECONDS if time.monotonic() - started < 60 else 10 * SECONDS)


def _answer(objects: TaskObjects, array: str) -> dict[str, Any] | None:
    document = objects.get(f"{state_of(array)}{OVER}")
    return None if document is None else json.loads(document[0])


def _why(answer: dict[str, Any]) -> str:
    if answer.get("error"):
        return str(answer["error"])
    states = ", ".join(f"{count} {state}" for state, count in answer.get("states", {}).items())
    more = " (more memory: array_options of the site's file)" if "OUT_OF_MEMORY" in states else ""
    return f"their jobs ended {states or 'unseen'}{more}"


# --- the jobs of an array -----------------------------------------------------------------------------------------


def write_jobs(objects: TaskObjects, array: str, jobs: Sequence[Job]) -> int:
    """Write jobs for an array; over how many parts they are spread."""
    parts = min(len(jobs), PARTS)

    def write(part: int) -> None:
        rows = [
            [job.module, job.function, job.step, job.number, job.arguments, job.before] for job in jobs[part::parts]
        ]
        objects.put(f"{ARRAYS}/{array}/{part:06d}.json", json.dumps({"parts": parts, "jobs": rows}).encode())

    with ThreadPoolExecutor(READERS) as writers:
        list(writers.map(write, range(parts)))
    return parts


def read_jobs(objects: TaskObjects, array: str, element: int, elements: int) -> Iterator[Job]:
    """The jobs of one element. Raises InfraError when there are none: whoever asked for the array is gone."""
    part, parts = element, element + 1
    while part < parts:
        document = objects.get(f"{ARRAYS}/{array}/{part:06d}.json")
        if document is None:
            if part >= elements:
                return
            raise InfraError(f"the jobs of array {array} are gone: another attempt has done them")
        document = json.loads(document[0])
        parts = document["parts"]
        for module, function, step, number, arguments, before in document["jobs"]:
            yield Job(module, function, objects.place, step, number, arguments, before)
        part += elements


# --- errors of jobs themselves ------------------------------------------------------------------------------------


class TaskFailed(StageError):
    """What a job raised that was not expected: the fault is in the code."""


_ERRORS: Mapping[ExitClass, type[Exception]] = {
    **{error.exit_class: error for error in (ConfigError, InputError, InfraError)},
    ExitClass.OOM: MemoryError,
}


def _write_error(objects: TaskObjects, array: str, element: int, error: Exception) -> None:
    """Leave an error for the stage that waits for this array: what an array of an attempt that is gone leaves is in
    nobody's way.
    """
    from stages.core.failures import classify
    from stages.core.workspace import scratch

    exit_class, message = classify(error, scratch())
    document: dict[str, Any] = {"exit": exit_class, "message": message.removeprefix("out of memory: ")}
    if isinstance(error, Damaged):
        document |= {"damaged": error.key, "found": error.sha256}
    objects.put(f"{state_of(array)}error-{element:06d}.json", json.dumps(document).encode())


def _raise_error(objects: TaskObjects, array: str) -> None:
    """Raise what an element left, where one did."""
    for row in objects.list(state_of(array)):
        if row.key.rsplit("/", 1)[1].startswith("error-") and (left := objects.get(row.key)) is not None:
            document = json.loads(left[0])
            if "damaged" in document:
                raise Damaged(document["message"], document["damaged"], document["found"])
            raise _ERRORS.get(ExitClass(document["exit"]), TaskFailed)(document["message"])


# --- an element ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Do the jobs of one element; the exit status. What follows `--secrets` names a file with the credentials of the
    store and of sources.
    """
    no_core_files()
    place, array, element, elements = arguments[0], arguments[1], int(arguments[2]), int(arguments[3])
    if arguments[4:5] == ["--secrets"]:
        take_secrets(Path(arguments[5]))
    objects = objects_at(place)
    for job in read_jobs(objects, array, element, elements):
        if receipt(job, objects) is not None:
            continue
        try:
            execute(job)
        except Exception as error:
            _write_error(objects, array, element, error)
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
