"""Per-shard tasks as an array of jobs, which the launcher submits when the stage asks for it: `workers = "slurm"`.

The stage writes its jobs into a file of the work folder, `arrays/<name>.jsonl`, and says so on its event stream
(`Context.array`). The launcher (flows/launch/slurm_arrays.py) submits the array, follows it, and writes
`arrays/<name>.over` when no element is left: JSON, the states in which they ended, or why there is no array. An element
runs

    python -m stages.lib.data.job_array JOBS ELEMENT ELEMENTS

which does every ELEMENTS-th job from ELEMENT on, but for those whose receipts are there. The error of a job itself is
left beside the file of jobs, and is the stage's. A job without a receipt was lost with its element, and is asked for
again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core.errors import ConfigError, ExitClass, InfraError, InputError, StageError
from stages.core.files import write_atomically
from stages.lib.data.task import ATTEMPTS, Job, execute, receipt

RequestArray = Callable[[Path, int], None]
"""Asks the launcher for an array: a file of jobs, and how many."""
SECONDS = 0.5
"""Between two looks at the folder; and ten times that, once it has been looked at for a minute."""
PATIENCE = 5.0
"""Seconds before a stage asks again when the launcher could not submit; twice as many each time."""


def run(folder: Path, name: str, jobs: Sequence[Job], request_array: RequestArray) -> Iterator[None]:
    """Have the jobs done; yields once for each. Raises a job's own error, InfraError when jobs are lost again and
    again.
    """
    folder.mkdir(exist_ok=True)
    left, answer = list(jobs), {}
    for attempt in range(ATTEMPTS):
        if answer.get("error"):
            time.sleep(PATIENCE * 2 ** (attempt - 1))
        _clear(left)
        path = write_jobs(folder, name, left)
        request_array(path, len(left))
        answer = yield from _follow(path, left)
        left = [job for job in left if receipt(job) is None]
        if not left:
            for used in folder.glob(f"{name}-????????[._]*"):
                used.unlink(missing_ok=True)
            return
    raise InfraError(
        f"{len(left)} shards ({name}) are left after {ATTEMPTS} arrays: {_why(answer)}; what they printed:"
        f" {folder}/{name}-*.log"
    )


def _clear(jobs: list[Job]) -> None:
    """Take away torn results of earlier attempts."""
    present = _present(jobs)
    for job in jobs:
        if Path(job[2]).name in present:
            shutil.rmtree(job[2], ignore_errors=True)


def _follow(path: Path, jobs: list[Job]) -> Generator[None, None, dict[str, Any]]:
    """Wait until the launcher answers, or all is done; yields once for each job. Returns the answer."""
    started, left = time.monotonic(), {Path(job[2]).name for job in jobs}
    while True:
        answer = _answer(path.with_suffix(".over"))
        present = _present(jobs)  # after the answer: nothing comes later than that
        _raise_error(path)
        for _ in left & present:
            yield
        left -= present
        if answer is not None or not left:
            return answer or {}
        time.sleep(SECONDS if time.monotonic() - started < 60 else 10 * SECONDS)


def _answer(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _why(answer: dict[str, Any]) -> str:
    if answer.get("error"):
        return str(answer["error"])
    states = ", ".join(f"{count} {state}" for state, count in answer.get("states", {}).items())
    more = " (more memory: array_options of the site's file)" if "OUT_OF_MEMORY" in states else ""
    return f"their jobs ended {states or 'unseen'}{more}"


def _present(jobs: list[Job]) -> set[str]:
    """Names in the folder of the jobs' folders: one look, however many there are."""
    return set(os.listdir(Path(jobs[0][2]).parent))


# --- the file of jobs: one a line, and where each begins, since a job may name thousands of files
# ---------------------------


def write_jobs(folder: Path, name: str, jobs: Sequence[Job]) -> Path:
    """Write jobs for an array; the path of their file."""
    path = folder / f"{name}-{secrets.token_hex(4)}.jsonl"
    starts = array("Q")
    with open(path, "wb") as stream:
        for job in jobs:
            starts.append(stream.tell())
            stream.write(json.dumps(job).encode() + b"\n")
    path.with_suffix(".starts").write_bytes(starts.tobytes())
    return path


def read_jobs(path: Path, element: int, elements: int) -> Iterator[Job]:
    """The jobs of one element."""
    starts = array("Q", path.with_suffix(".starts").read_bytes())
    with open(path, "rb") as stream:
        for start in starts[element::elements]:
            stream.seek(start)
            module, function, folder, arguments, before = json.loads(stream.readline())
            yield module, function, folder, arguments, before


# --- errors of jobs themselves
# --------------------------------------------------------------------------------------------


class TaskFailed(StageError):
    """What a job raised that was not expected: the fault is in the code."""


_ERRORS: Mapping[ExitClass, type[Exception]] = {
    **{error.exit_class: error for error in (ConfigError, InputError, InfraError)},
    ExitClass.OOM: MemoryError,
}


def _write_error(path: Path, element: int, error: Exception) -> None:
    """Leave an error beside the file of jobs: what an array of an attempt that is gone leaves is in nobody's way."""
    from stages.core.failures import classify

    exit_class, message = classify(error, path.parent)
    text = json.dumps({"exit": exit_class, "message": message.removeprefix("out of memory: ")})
    write_atomically(path.with_name(f"{path.stem}_{element}.error"), text)


def _raise_error(path: Path) -> None:
    """Raise what an element left, where one did."""
    for left in sorted(path.parent.glob(f"{path.stem}_*.error")):
        found = json.loads(left.read_text(encoding="utf-8"))
        raise _ERRORS.get(ExitClass(found["exit"]), TaskFailed)(found["message"])


# --- an element
# ------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Do the jobs of one element; the exit status. What follows `--secrets` names a file with the credentials of
    sources.
    """
    path, element, elements = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    if arguments[3:4] == ["--secrets"]:
        from stages.core.runtime import take_secrets

        take_secrets(Path(arguments[4]))
    for job in read_jobs(path, element, elements):
        if receipt(job) is not None:
            continue
        try:
            execute(job)
        except Exception as error:
            _write_error(path, element, error)
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
