"""Run `probe_source`."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from stages.probe_source.spec import SourceConfig

from stages.core.context import Context
from stages.core.errors import ConfigError, InfraError, InputError, Preempted


def run(ctx: Context[SourceConfig]) -> None:
    """Write `parts` files, after failing as told."""
    sentinel = ctx.config.sentinel
    if sentinel is None or not Path(sentinel).exists():
        if sentinel is not None:
            Path(sentinel).touch()
        _act(ctx, ctx.config.act)
    for part in range(ctx.config.parts):
        path = ctx.output("documents") / f"deep/part-{part:05d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{ctx.config.text} {part}\n")
    ctx.metric(1, loss=2.5)
    ctx.metric(2, loss=2.0, val_loss=2.25)
    ctx.describe("documents", meta={"parts": ctx.config.parts})
    ctx.stat(parts=ctx.config.parts, node=ctx.node)


def _sleep() -> None:
    """Ten minutes in short pieces: a signal that comes just before a long sleep is seen only after it."""
    for _ in range(3000):
        time.sleep(0.2)


def _run_from_tmp() -> None:
    path = Path("/tmp/program")
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    subprocess.run([path], check=True)


_FORBIDDEN: dict[str, Callable[[], object]] = {
    "become root": lambda: os.setuid(0),
    "give a file away": lambda: os.chown("/scratch", 0, 0),
    "make a device": lambda: os.mknod("/scratch/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0)),
    "change the root": lambda: os.chroot("/scratch"),
    "name the machine": lambda: socket.sethostname("probe"),
    "run a file of /tmp": _run_from_tmp,
}
"""What no stage has a use for."""


def _happens(act: Callable[[], object]) -> bool:
    """Whether something can be done."""
    try:
        act()
    except OSError:
        return False
    return True


def _fork_until_refused() -> int:
    """How many processes this one can start."""
    children: list[int] = []
    try:
        while len(children) < 5000:
            children.append(os.posix_spawn("/bin/sleep", ["sleep", "600"], {}))
    except OSError:
        pass
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
    return len(children)


def _reach() -> dict[str, object]:
    """What this process may write to and connect to."""
    status = Path("/proc/self/status").read_text()
    found: dict[str, object] = {
        row: status.partition(f"{row}:")[2].split("\n")[0].split()[0]
        for row in ("Uid", "CapEff", "CapBnd", "CapPrm", "CapAmb", "NoNewPrivs", "Seccomp")
    }
    for folder in ("/", "/app", "/etc", "/opt/venv/bin", "/usr/bin", "/dev", "/proc/sys/kernel", "/scratch", "/tmp"):
        found[folder] = _happens(lambda folder=folder: Path(folder, "moxin-probe").write_text("x"))
    for name, act in _FORBIDDEN.items():
        found[name] = _happens(act)
    for name, address in (("outside", ("1.1.1.1", 53)), ("loopback", ("127.0.0.1", 8333))):
        with socket.socket() as probe:
            probe.settimeout(2)
            found[name] = probe.connect_ex(address) == 0
    return found


def _act(ctx: Context[SourceConfig], act: str) -> None:
    expected = {"config": ConfigError, "input": InputError, "infra": InfraError, "preempted": Preempted}
    if act in expected:
        raise expected[act](f"asked for {act}")
    if act == "memory":
        raise MemoryError("asked for it")
    if act == "bug":
        raise KeyError("asked for a bug")
    if act == "enospc":
        with open("/dev/full", "w") as stream:  # the error of a write names no file
            stream.write("x")
    if act == "print":
        print("a line that a library prints")
        subprocess.run(["echo", "a line of a child process"], check=True)
    if act == "allocate":  # more than any limit: the kernel's turn
        held = []
        while True:
            held.append(bytearray(16 << 20))
    if act == "reach":  # what a container may do and see
        ctx.log(json.dumps(_reach()))
    if act == "fork":
        ctx.log(f"{_fork_until_refused()} processes")
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "orphan":  # a child that holds the output pipes open, and a parent that dies
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        ctx.log(f"child {child.pid}")
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "wait":
        ctx.log("waiting")
        _sleep()
    if act == "deaf":  # in a library's code, where no signal is handled
        ctx.log("waiting")
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    if act == "stubborn":  # swallows every request to stop
        while True:
            try:
                ctx.log("waiting")
                _sleep()
            except Preempted:
                ctx.log("not now")
