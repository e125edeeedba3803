"""Run a stage as a Slurm job: `sbatch` with the node's resources, events read from the job's output file.

A job outlives this process. Its number is in the ledger's record of the attempt, so that a flow that comes back follows
the same job (`take_over`) instead of starting another. A requeued job keeps its number, its request and its epoch, and
resumes from its own checkpoint. Request, secrets and output lie in a folder that login and compute nodes share
(Site.folder).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from flows.launch import scoped
from flows.launch.base import Job, parse_event, secrets_of, with_provenance
from flows.launch.slurm_arrays import JobArrays, cancel_leftovers, write
from flows.launch.slurm_controller import FINISHED, GONE, TERMINATIONS, job_state, queued_jobs, run
from flows.launch.slurm_scripts import Site, base_of, image_of, script, uses_arrays
from flows.log_lines import PIECE, LineCutter
from flows.settings import Settings
from stages.core.errors import ExitClass, InfraError
from stages.core.keys import sha256
from stages.core.workspace import attempt_folders, sweep


class SlurmHandle:
    """A job in the queue, running or over."""

    def __init__(self, number: str, base: Path, node: str, poll: float, arrays: JobArrays | None = None) -> None:
        self._number, self._base, self._node, self._poll, self._arrays = number, base, node, poll, arrays
        self.renewal: scoped.Renewal | None = None
        self._state: tuple[str, int] | None = None
        self._done: dict[str, Any] = {}
        self._stopping = False

    @property
    def id(self) -> str:
        return self._number

    def events(self) -> Iterator[dict[str, Any]]:
        tails = [_Tail(Path(f"{self._base}.out"), False), _Tail(Path(f"{self._base}.err"), True)]
        polled, reported = 0.0, ""
        while True:
            over = self._state is not None
            array_event: dict[str, Any] | None = None
            for tail in tails:
                for event in tail.read(everything=over):
                    if event["event"] == "array" and self._arrays:
                        array_event = (
                            event  # of several, read again by one that came back, only the last has somebody waiting
                        )
                        continue
                    if event["event"] == "done":
                        self._done = event
                    yield event
            if over:
                break
            if array_event and self._arrays and not self._stopping:
                yield from self._arrays.submit(array_event)
            if time.monotonic() - polled >= self._poll or os.path.exists(f"{self._base}.exit"):
                polled = time.monotonic()
                state, code, reason = job_state(self._number)
                if f"{state} {reason}" != reported and state == "PENDING":
                    yield {
                        "event": "log",
                        "level": "info",
                        "message": f"Slurm job {self._number} is pending ({reason})",
                    }
                reported = f"{state} {reason}"
                if state in FINISHED or state == GONE:
                    self._state = (state, code)
                    continue
                if self._arrays and not self._stopping:
                    yield from self._arrays.poll()
            time.sleep(min(0.5, self._poll))
        if self._state and self._state[0] in TERMINATIONS and self._done.get("exit") != ExitClass.OK:
            exit_class, message = TERMINATIONS[self._state[0]]
            yield {"event": "done", "exit": exit_class, "message": message.format(node=self._node)}

    def wait(self) -> int:
        while self._state is None:
            state, code, _ = job_state(self._number)
            if state in FINISHED or state == GONE:
                self._state = (state, code)
            else:
                time.sleep(self._poll)
        state, code = self._state
        if self._arrays:
            self._arrays.cancel()
        if self.renewal:
            self.renewal.end()
        for suffix in _INPUTS:
            with contextlib.suppress(OSError):  # the next start of a run removes what stays
                Path(f"{self._base}{suffix}").unlink(missing_ok=True)
        return self._status(state, code)

    def _status(self, state: str, code: int) -> int:
        """The exit status that carries the class. torchrun ends with 1 whatever its workers ended with: the event says
        more.
        """
        if state in TERMINATIONS and self._done.get("exit") != ExitClass.OK:
            return TERMINATIONS[state][0].code
        with contextlib.suppress(OSError, ValueError):
            code = int(Path(f"{self._base}.exit").read_text())
        if state == GONE and not os.path.exists(f"{self._base}.exit"):
            return ExitClass.PREEMPTED.code
        done_class = self._done.get("exit")
        if code and done_class and done_class != ExitClass.OK:
            return ExitClass(done_class).code
        return code

    def stop(self, grace: float) -> None:
        if self._state is not None or self._stopping:
            return
        self._stopping = True
        threading.Thread(target=self._stop, args=(grace,), daemon=True).start()

    def _stop(self, grace: float) -> None:
        if self._arrays:
            self._arrays.cancel()
        while self._state is None and not self._cancelled(grace):
            time.sleep(self._poll)  # the controller is away: nobody else ends this job

    def _cancelled(self, grace: float) -> bool:
        """Ask the job to stop, and cut it off; False where the controller does not answer."""
        state = job_state(self._number)[0]
        if state in FINISHED or state == GONE:
            return True
        with contextlib.suppress(InfraError):
            if state == "RUNNING":
                run("scancel", "--signal=TERM", self._number)  # to the steps: the script lives on to write the status
                deadline = time.monotonic() + grace
                while time.monotonic() < deadline and self._state is None:
                    time.sleep(0.2)
            if state != "UNKNOWN" and self._state is None:
                run("scancel", self._number)
            return state != "UNKNOWN"
        return False


class _Tail:
    """Reads a growing file line by line."""

    def __init__(self, path: Path, plain: bool) -> None:
        self._path, self._plain, self._offset, self._cutter = path, plain, 0, LineCutter()

    def read(self, everything: bool) -> Iterator[dict[str, Any]]:
        """Events of the whole lines that are new; at the end also of a last line that was cut off."""
        # not there yet, or the shared folder is away for a moment (a stale handle): the caller comes again
        with contextlib.suppress(OSError), open(self._path, "rb") as stream:
            stream.seek(self._offset)
            while piece := stream.read(PIECE):  # a flow that comes back has the whole log before it
                self._offset += len(piece)
                for line in self._cutter.lines(piece):
                    yield parse_event(line.decode("utf-8", "replace"), self._plain)
        if everything:
            for line in self._cutter.end():
                yield parse_event(line.decode("utf-8", "replace"), self._plain)


_INPUTS = (".json", ".secrets.json", ".sh")
"""Files that a job is started with, removed after it; its logs stay."""
_INPUT_NAME = re.compile(rf".+-[0-9a-f]{{16}}-[0-9]+({'|'.join(map(re.escape, _INPUTS))})", re.DOTALL)
"""Such a file's name, as `base_of` makes it: node, beginning of the key, epoch."""
LEFTOVER_SECONDS = 3600.0
"""Age of such a file that no job needs any more: another control plane writes them just before it submits."""


class SlurmLauncher:
    """Starts stages as Slurm jobs."""

    name: ClassVar[str] = "slurm"
    detached: ClassVar[bool] = True

    def __init__(self, settings: Settings, site: Site | None = None) -> None:
        self._settings = settings
        self._site = site or Site.load()
        self._folder = Path(self._site.folder or settings.home / "slurm")
        self._installation = sha256(str(settings.home).encode())[:12]

    def _base(self, job: Job) -> Path:
        return base_of(job, self._folder)

    def start(self, job: Job) -> SlurmHandle:
        base = self._base(job)
        job = with_provenance(job, image=image_of(job, self._site))
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for suffix in (".out", ".err", ".exit"):
                Path(f"{base}{suffix}").unlink(missing_ok=True)
            write(Path(f"{base}.json"), job.request.model_dump_json())
            session = self._session(job)
            self._write_secrets(job, session)
            write(Path(f"{base}.sh"), script(job, self._site, base, self._installation, self._folder / "scratch"))
        except OSError as error:
            raise InfraError(f"cannot write {error.filename}: {error.strerror}") from error
        cancel_leftovers(job, self._installation)
        number = run("sbatch", "--parsable", "--requeue", "--export=NONE", f"{base}.sh").strip().partition(";")[0]
        return self._handle(number, job, session)

    def _session(self, job: Job) -> scoped.Session:
        """What a job is given to reach the store with; for one that has files of its own on its node, copies of what
        names them.
        """
        if self._site.identity == "files":
            return scoped.Session(self._settings.store_environment())
        return scoped.session(self._settings, job.request)

    def _write_secrets(self, job: Job, session: scoped.Session) -> None:
        secrets = secrets_of(job, session.environment, self._site.identity)
        write(Path(f"{self._base(job)}.secrets.json"), secrets.model_dump_json())

    def _handle(self, number: str, job: Job, session: scoped.Session | None = None) -> SlurmHandle:
        arrays = JobArrays(job, self._site, self._folder, self._installation) if uses_arrays(job) else None
        handle = SlurmHandle(number, self._base(job), job.request.node, self._site.poll_seconds, arrays)
        if self._site.identity == "copied":
            deliver = partial(self._write_secrets, job)
            handle.renewal = scoped.Renewal(self._settings, job.request, session, deliver)
        return handle

    def take_over(self, id: str, job: Job) -> SlurmHandle | None:
        """Follow a job that another control plane started; None when it is over or unknown."""
        with contextlib.suppress(InfraError):
            state, _, _ = job_state(id)
            if state not in FINISHED and state != GONE:
                return self._handle(id, job)
        return None

    def reap(self, run_id: str | None = None) -> list[str]:
        if run_id is None:  # a job that a dead control plane left is taken over, not killed
            self._remove_leftovers()
            return []
        numbers = list(queued_jobs(f"moxin:{self._installation}:{run_id}:"))
        if numbers:
            run("scancel", "--state=PENDING", *numbers)
            run("scancel", "--state=RUNNING", "--signal=TERM", *numbers)  # a stage that does not stop cuts itself off
        return numbers

    def _remove_leftovers(self) -> None:
        """Remove what attempts left whose control plane died: their folders in the shared scratch, and the files that
        they were started with, credentials among them.

        Only names that `base_of` makes, since the folder may be the user's own; and only while no job of any moxin
        installation of this user is in the queue: another may share the folder, and where a file system keeps locks on
        each node (Lustre with `localflock`), a folder that a compute node uses looks free from here.
        """
        scratch = self._folder / "scratch"
        folders = attempt_folders(scratch)  # listed before the queue: a job that begins later has a folder of its own
        inputs = [path for path in self._folder.glob("*") if _INPUT_NAME.fullmatch(path.name)]
        with contextlib.suppress(InfraError, OSError):
            if queued_jobs("moxin:"):
                return
            sweep(scratch, folders)
            for path in inputs:
                if path.exists() and time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                    path.unlink(missing_ok=True)
