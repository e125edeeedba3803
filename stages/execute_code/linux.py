"""System calls that Python's `os` does not have, and what a process of the sandbox needs of them. Standard library
alone.

Constants are those of the kernel's headers: linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h.
"""

from __future__ import annotations

import ctypes
import os
import signal

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_RECURSIVE, AT_FDCWD = 0x8000, -100
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
CAPABILITIES = 64
"""More than there are."""
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR = 442
"""The same on every architecture, as every call newer than 2018."""

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | ctypes.Structure | None) -> int:
    """A function of the C library. Raises OSError that names it."""
    function = getattr(_libc, name)
    passed = [
        ctypes.byref(a) if isinstance(a, ctypes.Structure) else ctypes.c_long(a) if isinstance(a, int) else a
        for a in arguments
    ]
    result = function(*passed)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def syscall(number: int, name: str, *arguments: int | bytes | ctypes.Structure | None) -> int:
    """A system call by its number. Raises OSError with its name."""
    try:
        return call("syscall", number, *arguments)
    except OSError as error:
        raise OSError(error.errno, f"{name}: {os.strerror(error.errno or 0)}") from None


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2). Raises OSError."""
    call("mount", source.encode(), target.encode(), kind and kind.encode(), flags, options.encode())  # type: ignore[arg-type]


def restrict_mount(target: str, flags: int, *, recursive: bool) -> None:
    """Make a mount read-only, without devices, ... (mount_setattr(2), Linux 5.12). Raises OSError."""
    attributes = _MountAttributes(attr_set=flags)
    where = AT_RECURSIVE if recursive else 0
    size = ctypes.sizeof(attributes)
    syscall(MOUNT_SETATTR, "mount_setattr", AT_FDCWD, target.encode(), where, attributes, size)


def pivot_root(folder: str) -> None:
    """Make a mount the root, and let go of the former root (pivot_root(2), its last example). Raises OSError."""
    os.chdir(folder)
    syscall(PIVOT_ROOT[os.uname().machine], "pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapabilityData(ctypes.Structure):
    _fields_ = [(f"{name}{n}", ctypes.c_uint32) for n in (0, 1) for name in ("effective", "permitted", "inheritable")]


def give_up_privileges() -> None:
    """No capabilities, now or ever. Raises OSError."""
    for number in range(CAPABILITIES):
        try:
            call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)
        except OSError:  # there is no such capability, or the process may not drop it: then it cannot gain it either
            break
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("capset", _CapabilityHeader(version=0x20080522), _CapabilityData())


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when the thread that started it ends. To be called after a change of user."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() not in (parent, 0):  # 0: the parent is outside of this process's namespace
        os._exit(1)
