"""Memory of a process that measures itself."""

from __future__ import annotations

from pathlib import Path


def peak_kib() -> int:
    """The most that this process has held, KiB (VmHWM, proc(5)): getrusage's value begins with that of the parent."""
    return _status("VmHWM")


def resident_kib() -> int:
    """What this process holds now, KiB (VmRSS)."""
    return _status("VmRSS")


def _status(name: str) -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0])
