"""Run a stage as a Slurm job: `sbatch` with the node's resources, events read from the job's output file.

A job outlives this process. Its number is in the ledger's record of the attempt, so that a flow that comes back follows the
same job (`adopt`) instead of starting another. A requeued job keeps its number, its request and its epoch, and resumes from
its own checkpoint. Request, secrets and output lie in a folder that login and compute nodes share (Site.folder).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from flows.launch.base import Job, event_of, secrets_of
from flows.launch.slurm_arrays import Arrays, cancel_leftovers, write
from flows.launch.slurm_controller import ENDS, GONE, OVER, look, queued, run
from flows.launch.slurm_scripts import Site, script, wants_arrays
from flows.settings import Settings
from stages.core.contracts import ExitClass, InfraError
from stages.core.keys import sha256


class SlurmHandle:
    """A job in the queue, running or over."""

    def __init__(self, number: str, base: Path, node: str, poll: float, arrays: Arrays | None = None) -> None:
        self._number, self._base, self._node, self._poll, self._arrays = number, base, node, poll, arrays
        self._state: tuple[str, int] | None = None
        self._done: dict[str, Any] = {}
        self._stopping = False

    @property
    def id(self) -> str:
        return self._number

    def events(self) -> Iterator[dict[str, Any]]:
        tails = [_Tail(Path(f"{self._base}.out"), False), _Tail(Path(f"{self._base}.err"), True)]
        looked, told = 0.0, ""
        while True:
            over = self._state is not None
            wanted: dict[str, Any] | None = None
            for tail in tails:
                for event in tail.read(everything=over):
                    if event["event"] == "array" and self._arrays:
                        wanted = event  # of several, read again by one that came back, only the last has somebody waiting
                        continue
                    if event["event"] == "done":
                        self._done = event
                    yield event
            if over:
                break
            if wanted and self._arrays and not self._stopping:
                yield from self._arrays.asked(wanted)
            if time.monotonic() - looked >= self._poll or Path(f"{self._base}.exit").exists():
                looked = time.monotonic()
                state, code, reason = look(self._number)
                if f"{state} {reason}" != told and state == "PENDING":
                    yield {"event": "log", "level": "info", "message": f"Slurm job {self._number} is pending ({reason})"}
                told = f"{state} {reason}"
                if state in OVER or state == GONE:
                    self._state = (state, code)
                    continue
                if self._arrays and not self._stopping:
                    yield from self._arrays.look()
            time.sleep(min(0.5, self._poll))
        if self._state and self._state[0] in ENDS and self._done.get("exit") != ExitClass.OK:
            exit_class, message = ENDS[self._state[0]]
            yield {"event": "done", "exit": exit_class, "message": message.format(node=self._node)}

    def wait(self) -> int:
        while self._state is None:
            state, code, _ = look(self._number)
            if state in OVER or state == GONE:
                self._state = (state, code)
            else:
                time.sleep(self._poll)
        state, code = self._state
        if self._arrays:
            self._arrays.cancel()
        for suffix in (".json", ".secrets.json", ".sh"):
            Path(f"{self._base}{suffix}").unlink(missing_ok=True)
        return self._status(state, code)

    def _status(self, state: str, code: int) -> int:
        """The exit status that carries the class. torchrun ends with 1 whatever its workers ended with: the event says more."""
        if state in ENDS and self._done.get("exit") != ExitClass.OK:
            return ENDS[state][0].code
        with contextlib.suppress(OSError, ValueError):
            code = int(Path(f"{self._base}.exit").read_text())
        if state == GONE and not Path(f"{self._base}.exit").exists():
            return ExitClass.PREEMPTED.code
        said = self._done.get("exit")
        if code and said and said != ExitClass.OK:
            return ExitClass(said).code
        return code

    def stop(self, grace: float) -> None:
        if self._state is not None or self._stopping:
            return
        self._stopping = True
        threading.Thread(target=self._stop, args=(grace,), daemon=True).start()

    def _stop(self, grace: float) -> None:
        if self._arrays:
            self._arrays.cancel()
        with contextlib.suppress(InfraError):
            if look(self._number)[0] == "RUNNING":
                run("scancel", "--signal=TERM", self._number)  # to the steps: the script lives on to write the status
                deadline = time.monotonic() + grace
                while time.monotonic() < deadline and self._state is None:
                    time.sleep(0.2)
            if self._state is None:
                run("scancel", self._number)


class _Tail:
    """Reads a growing file line by line."""

    def __init__(self, path: Path, plain: bool) -> None:
        self._path, self._plain, self._offset = path, plain, 0

    def read(self, everything: bool) -> Iterator[dict[str, Any]]:
        """Events of the whole lines that are new; at the end also of a last line that was cut off."""
        try:
            with open(self._path, "rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except FileNotFoundError:
            return
        if not everything:
            data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        for line in data.splitlines():
            yield event_of(line.decode("utf-8", "replace"), self._plain)


class SlurmLauncher:
    """Starts stages as Slurm jobs."""

    name: ClassVar[str] = "slurm"
    detached: ClassVar[bool] = True

    def __init__(self, settings: Settings, site: Site | None = None) -> None:
        self._settings = settings
        self._site = site or Site.load()
        self._folder = Path(self._site.folder or settings.home / "slurm")
        self._mark = sha256(str(settings.home).encode())[:12]

    def _base(self, job: Job) -> Path:
        return self._folder / f"{job.request.node}-{job.request.key[:16]}-{job.request.lease.epoch}"

    def start(self, job: Job) -> SlurmHandle:
        base = self._base(job)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if work := job.request.config.get("work"):
                Path(work).mkdir(parents=True, exist_ok=True)  # a container's runtime binds only what is there
            for suffix in (".out", ".err", ".exit"):
                Path(f"{base}{suffix}").unlink(missing_ok=True)
            write(Path(f"{base}.json"), job.request.model_dump_json())
            write(Path(f"{base}.secrets.json"), secrets_of(job, self._settings.store_environment()).model_dump_json())
            write(Path(f"{base}.sh"), script(job, self._site, base, self._mark, self._folder / "scratch"))
        except OSError as error:
            raise InfraError(f"cannot write {error.filename}: {error.strerror}") from error
        if wants_arrays(job):
            cancel_leftovers(job, self._mark)
        number = run("sbatch", "--parsable", "--requeue", "--export=NONE", f"{base}.sh").strip().partition(";")[0]
        return self._handle(number, job)

    def _handle(self, number: str, job: Job) -> SlurmHandle:
        arrays = Arrays(job, self._site, self._folder, self._mark) if wants_arrays(job) else None
        return SlurmHandle(number, self._base(job), job.request.node, self._site.poll_seconds, arrays)

    def adopt(self, id: str, job: Job) -> SlurmHandle | None:
        """Follow a job that another control plane started; None when it is over or unknown."""
        with contextlib.suppress(InfraError):
            state, _, _ = look(id)
            if state not in OVER and state != GONE:
                return self._handle(id, job)
        return None

    def reap(self, run_id: str | None = None) -> list[str]:
        if run_id is None:  # what a dead control plane left is adopted, not killed
            return []
        found = list(queued(f"moxin:{self._mark}:{run_id}:"))
        if found:
            run("scancel", *found)
        return found
