"""The sandbox as the stage sees it: chosen and proved when it is made, then one process tree for each program.

    with Sandbox("execute", Limits(), ("numpy",), scratch) as sandbox:
        outcome = sandbox.run("assert 1 + 1 == 2")

What may hold a program is tried in this order: namespaces, then Landlock with a closer filter of system calls. Each is
used only after a program that tries to get out was run in it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from stages.core.errors import ConfigError, InfraError
from stages.core.files import ROOT
from stages.execute_code.supervisor import PASSED

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache")
"""What the interpreter's extension modules need."""
START = "from stages.execute_code.supervisor import main; main()"
GRACE = 60
"""Seconds that a supervisor may take beyond its program's, before it counts as broken."""
ATTEMPTS, PAUSE = 3, 1.0
"""Tries of a sandbox that cannot be made (processes or memory run short for a moment), and seconds between them."""
Mode = Literal["namespaces", "landlock"]
MODES: tuple[Mode, ...] = ("namespaces", "landlock")


@dataclass(frozen=True)
class Limits:
    """Of one program."""

    seconds: int = 5
    wall_seconds: float = 15
    memory_mib: int = 1024
    processes: int = 16
    disk_mib: int = 16
    output_kib: int = 4


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    reason: str
    detail: str
    output: str
    output_cut: bool

    @property
    def passed(self) -> bool:
        """Whether the program and its test ran to their end."""
        return self.reason == PASSED


class Stopped(Exception):
    """The sandbox was closed while a program ran."""


class Sandbox:
    """Runs programs, from several threads at a time. Closing it ends all that run."""

    def __init__(
        self,
        node: str,
        limits: Limits,
        packages: Sequence[str],
        scratch: Path,
        modes: Sequence[Mode] = MODES,
    ) -> None:
        self._limits, self._folder = limits, scratch / "sandbox"
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed, self._lock = False, threading.Lock()
        shutil.rmtree(self._folder, ignore_errors=True)
        (self._folder / "root").mkdir(parents=True)
        self._readable = [*_interpreter(), *_link_packages(node, packages, self._folder / "packages")]
        self.mode: Mode = self._choose(node, modes)

    def _choose(self, node: str, modes: Sequence[Mode]) -> Mode:
        """The first way to hold a program that holds one. Raises ConfigError."""
        faults = []
        for mode in modes:
            if (fault := self._try(mode)) is None:
                return mode
            faults.append(f"{mode}: {fault}")
        raise ConfigError(
            f"{node}.isolation = {'required' if len(modes) > 1 else modes[0]!r}: programs cannot be kept from this"
            f" machine's files and network ({'; '.join(faults)}): allow user namespaces (sysctl"
            " user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns = 0), or use Linux 6.2 or newer"
            " with Landlock and a container runtime that lets landlock_* and seccomp pass"
        )

    def _try(self, mode: Mode) -> str | None:
        """What is wrong with a way to hold a program; None: nothing."""
        secret = self._folder / "secret"
        secret.write_text(secrets.token_hex(), encoding="ascii")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            port, alone = listener.getsockname()[1], mode == "landlock"
            text = ESCAPE.format(secret=str(secret), port=port, folder=str(self._folder), alone=alone)
            answer = self._start(text, mode)
            try:
                listener.accept()
                return "a program reached a port of this machine"
            except BlockingIOError:
                pass
        if "trouble" in answer:
            return answer["trouble"]
        if answer["reason"] == PASSED and secret.exists() and not (self._folder / "escaped").exists():
            return None
        return answer["detail"] or answer["reason"]

    def run(self, program: str) -> Outcome:
        """Run a program. Raises InfraError when the sandbox cannot be made any more, Stopped when it was closed."""
        for attempt in range(ATTEMPTS):
            answer = self._start(program, self.mode)
            if "trouble" not in answer:
                return Outcome(**answer)
            if attempt == ATTEMPTS - 1:
                raise InfraError(f"a program's sandbox failed {ATTEMPTS} times: {answer['trouble']}")
            time.sleep(PAUSE)
        raise AssertionError

    def _start(self, program: str, mode: Mode) -> dict[str, Any]:
        limits = self._limits
        job = {
            "program": program,
            "mode": mode,
            "readable": self._readable,
            "packages": str(self._folder / "packages"),
            "hidden": [str(ROOT)],
            "folder": str(self._folder / "root"),
            "seconds": limits.seconds,
            "wall_seconds": limits.wall_seconds,
            "memory": limits.memory_mib << 20,
            "processes": limits.processes,
            "disk": limits.disk_mib << 20,
            "output": limits.output_kib << 10,
        }
        with self._lock:
            if self._closed:
                raise Stopped
            process = subprocess.Popen(
                [sys.executable, "-P", "-S", "-s", "-c", START, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
            )
            self._running.add(process)
        try:
            answer, complaint = process.communicate(json.dumps(job).encode(), limits.wall_seconds + GRACE)
        except subprocess.TimeoutExpired:
            return {"trouble": "its supervisor did not end"}
        finally:
            process.kill()
            process.wait()
            with self._lock:
                self._running.discard(process)
                if self._closed:
                    raise Stopped
        return _read(answer, complaint)

    def close(self) -> None:
        """End all programs that run: with a supervisor, the kernel ends all below it."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(answer: bytes, complaint: bytes) -> dict[str, Any]:
    try:
        return json.loads(answer)
    except ValueError:
        last = complaint.decode("utf-8", "replace").strip().splitlines()[-1:]
        return {"trouble": f"its supervisor was ended{': ' if last else ''}{''.join(last)}"}


def _interpreter() -> list[str]:
    """Files and folders that the interpreter reads: of its own installation and the system's libraries."""
    paths = sysconfig.get_paths()
    listed = [*LIBRARIES, str(sysconfig.get_config_var("LIBDIR")), paths["stdlib"], paths["platstdlib"]]
    real = [p for path in listed for p in dict.fromkeys((path, os.path.realpath(path)))]
    outermost: list[str] = []
    for path in dict.fromkeys(p for p in real if os.path.lexists(p)):
        if not any(path.startswith(f"{parent}/") for parent in outermost if not os.path.islink(parent)):
            outermost.append(path)
    return outermost


def _link_packages(node: str, packages: Sequence[str], folder: Path) -> list[str]:
    """Make a folder that holds links to the packages alone, and give what must be readable for it. Raises
    ConfigError.
    """
    folder.mkdir()
    readable = [str(folder)]
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"{node}.packages = {name!r}: the stage's environment has no such package: leave it out")
        place = Path(next(iter(spec.submodule_search_locations)))
        for part in (place, place.with_name(f"{name}.libs")):  # where wheels keep the libraries that they bring
            if part.is_dir():
                (folder / part.name).symlink_to(part)
                readable.append(str(part))
    return readable


ESCAPE = """
import os, socket, signal

def denied(attempt):
    try:
        attempt()
    except OSError:
        return
    raise AssertionError("a program could do: " + attempt.__name__)

def read_a_file(): open({secret!r}).read()
def read_the_accounts(): open("/etc/passwd").read()
def read_a_process(): open("/proc/self/environ").read()
def write_a_file(): open({folder!r} + "/escaped", "w").write("escaped")
def change_a_mode(): os.chmod({secret!r}, 0)
def remove_a_file(): os.unlink({secret!r})
def open_a_socket(): socket.create_connection(("127.0.0.1", {port}), 1)
def signal_others(): os.kill(1, signal.SIGTERM)
def change_the_root(): os.chroot("/")

for attempt in (
    read_a_file, read_the_accounts, read_a_process, write_a_file, change_a_mode, remove_a_file, open_a_socket,
    change_the_root
):
    denied(attempt)
if {alone}:
    denied(signal_others)
"""
"""A program that tries to get out of its sandbox, and passes if it cannot. A child could signal number 1 of its own
namespace without effect.
"""
