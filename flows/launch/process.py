"""Run a stage as a process of this machine, in the present Python environment: the embedded default.

The stage holds one end of a pipe; when this process dies, however it dies, the pipe closes and the stage stops. No
orphan survives its grace. `reap` finds what is left of it all the same (a stage stuck in the kernel, say).

A stage of several processes runs under torchrun, whose own exit status says nothing: how it ended is what its first
process told last, and one that could not tell was lost.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil

from flows.launch.base import (
    Job,
    engine_pythons,
    parse_event,
    public_environment,
    source_environment,
    torchrun,
    with_provenance,
)
from flows.log_lines import LONGEST
from flows.settings import Settings
from stages.core.errors import ExitClass, InfraError
from stages.core.files import ROOT
from stages.core.processes import process_alive, process_identity

_END = object()
_INHERITED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
)
"""What of this process's environment a stage sees: never the control plane's own secrets."""


class ProcessHandle:
    """A running stage process."""

    def __init__(self, process: subprocess.Popen[bytes], request_file: Path, ranks: int = 1) -> None:
        self._process, self._request_file, self._ranks = process, request_file, ranks
        self._done_class = ExitClass.PREEMPTED
        self._lines: queue.Queue[Any] = queue.Queue(maxsize=10_000)
        self._readers = [
            threading.Thread(target=self._read, args=(process.stdout, False), daemon=True),
            threading.Thread(target=self._read, args=(process.stderr, True), daemon=True),
        ]
        self._group_reaper = threading.Thread(target=self._reap_group, daemon=True)
        for thread in (*self._readers, self._group_reaper):
            thread.start()

    @property
    def id(self) -> str:
        return str(self._process.pid)

    def _read(self, stream: Any, plain: bool) -> None:
        while raw := stream.readline(LONGEST):
            self._lines.put(parse_event(raw.decode("utf-8", "replace").rstrip("\n"), plain))
        self._lines.put(_END)

    def events(self) -> Iterator[dict[str, Any]]:
        open_streams = len(self._readers)
        while open_streams:
            event = self._lines.get()
            if event is _END:
                open_streams -= 1
            else:
                if event["event"] == "done":
                    self._done_class = ExitClass(event["exit"])
                yield event

    def wait(self) -> int:
        code = self._process.wait()
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        self._group_reaper.join()
        self._request_file.unlink(missing_ok=True)
        return self._done_class.code if self._ranks > 1 and (code or self._done_class is not ExitClass.OK) else code

    def stop(self, grace: float) -> None:
        if self._process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        timer = threading.Timer(grace, self._kill_if_running)
        timer.daemon = True
        timer.start()

    def _kill_if_running(self) -> None:
        if self._process.poll() is None:
            self._kill_group()

    def _reap_group(self) -> None:
        """Once the stage has ended, end what it left running, which would hold the pipes, and so `events`, open."""
        with contextlib.suppress(ChildProcessError):  # it has been waited for already
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._kill_group()
        if self._ranks > 1:  # torchrun's processes are groups of their own: what is left of them sees its input end
            with contextlib.suppress(OSError):
                if self._process.stdin:
                    self._process.stdin.close()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def command(job: Job, request: Path) -> list[str]:
    """The command line of a stage: the runtime, under torchrun where the launcher starts several processes."""
    return [sys.executable, *torchrun(job, "--standalone"), "-m", "stages.core.runtime", str(request)]


class ProcessLauncher:
    """Starts stages with the interpreter that runs this program."""

    name: ClassVar[str] = "process"
    detached: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._requests = settings.home / "requests"

    def command(self, job: Job, request: Path) -> list[str]:
        """What is started; a launcher that starts it differently says so here."""
        return command(job, request)

    def start(self, job: Job) -> ProcessHandle:
        job = with_provenance(job)
        try:
            self._requests.mkdir(parents=True, exist_ok=True)
            path = self._requests / f"{job.request.key[:16]}-{job.request.lease.epoch}.json"
            path.write_text(job.request.model_dump_json(), encoding="utf-8")
            process = subprocess.Popen(
                self.command(job, path),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment(job),
                cwd=ROOT,
                start_new_session=True,
            )
        except OSError as error:
            raise InfraError(f"cannot start stage {job.request.stage}: {error.strerror} ({error.filename})") from error
        return ProcessHandle(process, path, job.ranks)

    def _environment(self, job: Job) -> dict[str, str]:
        env = {name: os.environ[name] for name in _INHERITED if name in os.environ} | engine_pythons()
        env |= self._settings.store_environment() | source_environment(job) | public_environment(job)
        env |= {
            "MOXIN_CACHE": str(self._settings.home / "cache"),
            "MOXIN_SCRATCH": str(self._settings.home / "scratch"),
            "NUMBA_CACHE_DIR": str(self._settings.home / "cache" / "numba"),
            "MOXIN_LAUNCHER": process_identity(),
        }
        return env

    def take_over(self, id: str, job: Job) -> None:
        return None  # a stage ends with its control plane

    def reap(self, run_id: str | None = None) -> list[str]:
        reaped: list[str] = []
        for process in psutil.process_iter(["environ"]):
            env: dict[str, str] = process.info["environ"] or {}  # None: another user's
            if env.get("MOXIN_SCRATCH") != str(self._settings.home / "scratch") or "MOXIN_LAUNCHER" not in env:
                continue
            if (env.get("MOXIN_RUN") == run_id) if run_id else not process_alive(env["MOXIN_LAUNCHER"]):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGTERM if run_id else signal.SIGKILL)
                    reaped.append(str(process.pid))
        return reaped
