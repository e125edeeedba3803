"""Who a process is: this machine, this boot, this process, so that a dead one is told from a live one, and from another
of its number. That it leaves no core file, and what it hands on of its secrets.

The only place that reads /proc: psutil would do it too, and every stage's image would then carry it for these few
lines (stages/core needs pydantic and boto3 alone). The control plane, which has it anyway, uses it (flows/).
"""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

SECRETS = (
    "AWS_",
    "MOXIN_SOURCE_",
    "MOXIN_SECRETS",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
)
"""Beginnings of variables that a process has no use for which talks neither to the store nor to a source."""


def without_secrets() -> dict[str, str]:
    """This process's environment, for one that works on what others wrote, or that others wrote."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SECRETS)}


def no_core_files() -> None:
    """Let neither this process nor what it starts leave a picture of its memory, which holds credentials.

    A limit of one byte, since the kernel writes no file that short, and starts no program that core files are piped to
    for a process with just this limit, while it does for one with none (core(5); `do_coredump` in fs/coredump.c).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    most = 0 if hard == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


def host_identity() -> str:
    """This machine, this boot, and in it these process numbers: a dead process can only be told from a live one here.

    Two workers in containers of one machine have the same boot, and do not see each other's processes.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_identity(pid: int | None = None) -> str:
    """A process by number and start time, so that a reused number is not mistaken for it."""
    pid = pid or os.getpid()
    fields = _stat(pid)
    return f"{pid}:{fields[19] if fields else 0}"


def process_alive(identity: str) -> bool:
    """Whether the process that `process_identity` named still runs (zombies do not count)."""
    pid, _, start = identity.partition(":")
    fields = _stat(pid)
    if not fields:
        return not Path("/proc/self/stat").exists()  # without /proc nothing can be said: trust the expiry alone
    return fields[19] == start and fields[0] not in "ZX"


def group_members() -> list[int]:
    """Process numbers of this process's group, without its own."""
    members: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(entry.name)
        if fields and int(fields[2]) == os.getpgrp() and int(entry.name) != os.getpid():
            members.append(int(entry.name))
    return members


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, user and system (proc(5): utime, stime); 0 for one that is gone."""
    fields = _stat(pid)
    return 0.0 if not fields else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int | str) -> list[str]:
    """What the kernel tells of a process from its state on (proc(5): the third field is the first here); nothing of one
    that is gone. Before it stands its name, which the kernel cuts after 15 bytes, in the middle of a character too.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
