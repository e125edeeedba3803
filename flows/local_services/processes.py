"""Processes of the local services: started with claimed ports, known by number and start time, found again without a
state file, ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from flows.local_services.ports import Claims
from flows.settings import QUIET
from stages.core.files import ROOT
from stages.core.processes import process_alive, process_identity

MARKS = {"store": "mini", "prefect": "server", "worker": "worker"}
"""A word of each service's command line: what it starts inherits its environment, but is not the service."""
HOME, NAME, PORTS_OF = "MOXIN_SERVICE_HOME", "MOXIN_SERVICE", "MOXIN_SERVICE_PORTS"
"""What a service carries in its environment, so that it can be found without a file."""
LOG_END = 64 << 10
"""Bytes of a log that are looked at for the reason of an end."""

State = dict[str, Any]
"""What services.json holds: the ports, and the identity of each process."""

Launch = tuple[list[str], dict[str, str], Claims]
"""A service's command, its environment, and the claims on its ports."""


def alive(state: State, name: str) -> bool:
    """Whether a service of a state runs."""
    return bool(state.get(name)) and process_alive(state[name])


def _beginning(name: str) -> str:
    return f"--- {name} started"


def said(folder: Path, name: str) -> str:
    """The end of what a service has written to its log since it was started last."""
    with open(folder / "logs" / f"{name}.log", "rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - LOG_END))
        text = stream.read().decode("utf-8", "replace")
    _, mark, since = text.rpartition(_beginning(name))
    return since.partition("\n")[2] if mark else text


def start(
    folder: Path,
    state: State,
    name: str,
    command: list[str],
    env: dict[str, str],
    claims: Claims,
    say: Callable[[str], None],
) -> None:
    """Start a service in a session of its own; it takes the claims over."""
    say(f"starting {name}")
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_", "MOXIN_SERVICE"))}
    ports = {key: value for key, value in state.items() if key.endswith("_port") and value in claims}
    marks = {HOME: str(folder), NAME: name, PORTS_OF: json.dumps(ports)}

    def child() -> None:  # a shell may have set SIGINT to be ignored, and the worker would then not stop on SIGTERM
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with open(log, "ab") as stream:
        stream.write(f"{_beginning(name)} {time.strftime('%F %T')}\n".encode())
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=clean | QUIET | env | marks,
            cwd=folder if name == "store" else ROOT,
            start_new_session=True,
            preexec_fn=child,
            pass_fds=[claim.fileno() for claim in claims.values()],
        )
    for claim in claims.values():
        claim.close()
    state[name] = process_identity(process.pid)


def stop(state: State, name: str, seconds: float = 20.0) -> bool:
    """Stop a service: TERM, then KILL for its whole group. False when it did not run."""
    identity = state.pop(name, None)
    if not identity or not process_alive(identity):
        return False
    pid = int(identity.partition(":")[0])
    for sig, limit in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, sig)
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if not process_alive(identity):
                return True
            time.sleep(0.05)
    return True


def find(folder: Path) -> tuple[State, dict[str, str]]:
    """The services of a state folder that run.

    Returns: what services.json would say of them (ports and identities); and the keys that they use, as
    credentials.json names them.
    """
    state: State = {}
    keys: dict[str, str] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError, ValueError, KeyError):
            env = process.environ()
            name = env.get(NAME, "")
            if env.get(HOME) != str(folder) or name not in MARKS or os.getsid(process.pid) != process.pid:
                continue
            if MARKS[name] not in process.cmdline():
                continue
            state |= {name: process_identity(process.pid), **json.loads(env[PORTS_OF])}
            if name == "store":
                keys |= {"s3_access_key": env["AWS_ACCESS_KEY_ID"], "s3_secret_key": env["AWS_SECRET_ACCESS_KEY"]}
            elif name == "prefect":
                keys["prefect_auth"] = env["PREFECT_SERVER_API_AUTH_STRING"]
    return state, keys


def memory(pid: int) -> int:
    """Resident memory in MiB of a service and of every process of its session."""
    total = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == pid:
                total += process.memory_info().rss
    return total >> 20
