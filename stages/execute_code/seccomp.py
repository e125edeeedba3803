"""The filter of system calls: what no program that is to be scored needs. Standard library alone.

A list of what is denied, not of what is allowed: the interpreter, numpy and the C library change what they call from
one version to the next. What keeps a program from files, processes and network are namespaces or Landlock; this closes
what those leave open, and the rarely used parts of the kernel where its faults are. Filters are classic BPF over
`struct seccomp_data` (linux/seccomp.h, linux/filter.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator

from stages.execute_code.linux import call

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of linux/audit.h."""
X32 = 0x40000000
"""Bit of the calls of x86-64's 32-bit-pointer ABI, which would go around the numbers."""
NEW_NAMESPACES = 0x7E020080
"""CLONE_NEW*."""
CLONE_THREAD = 0x00010000
AF_UNIX = 1
F_SETOWN, F_SETOWN_EX = 8, 15
FIOSETOWN, SIOCSPGRP = 0x8901, 0x8902
PR_SET_PDEATHSIG, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data."""


def _table(text: str) -> dict[str, tuple[int, int]]:
    """name: (number on x86-64, number on aarch64), from asm/unistd_64.h and asm-generic/unistd.h; 0: there is none."""
    rows = (row.split() for row in text.replace("\n", " ").split(","))
    return {name: (int(x86), int(arm)) for name, x86, arm in rows}


DENIED = _table("""
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272, pidfd_getfd 438 438,
    process_madvise 440 440, process_mrelease 448 448,
    mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, setns 308 268, unshare 272 97, open_tree 428 428,
    move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442,
    name_to_handle_at 303 264, open_by_handle_at 304 265, fanotify_init 300 262,
    swapon 167 224, swapoff 168 225, reboot 169 142, sethostname 170 161, acct 163 89, setdomainname 171 162,
    init_module 175 105, finit_module 313 273, delete_module 176 106, kexec_load 246 104, kexec_file_load 320 294,
    quotactl 179 60, quotactl_fd 443 443, settimeofday 164 170, clock_settime 227 112, clock_adjtime 305 266,
    adjtimex 159 171, syslog 103 116, vhangup 153 58, ioperm 173 0, iopl 172 0, modify_ldt 154 0,
    bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, personality 135 92, io_uring_setup 425 425,
    io_uring_enter 426 426, io_uring_register 427 427, add_key 248 217, request_key 249 218, keyctl 250 219,
    mbind 237 235, set_mempolicy 238 237, migrate_pages 256 238, move_pages 279 239,
    socket 41 198, shmget 29 194, msgget 68 186, semget 64 190, mq_open 240 180, memfd_create 319 279,
    memfd_secret 447 447
""")
"""Other processes, the view of the system, the machine's settings, parts of the kernel that are known for their faults,
the network, and memory that no limit of a process counts.
"""
ALONE = _table("""
    fork 57 0, vfork 58 0, pidfd_send_signal 424 424, tkill 200 130, rt_sigqueueinfo 129 138,
    rt_tgsigqueueinfo 297 240, setpriority 141 140, sched_setaffinity 203 122, sched_setattr 314 274,
    sched_setparam 142 118, sched_setscheduler 144 119, ioprio_set 251 30, chmod 90 0, fchmod 91 52, fchmodat 268 53,
    fchmodat2 452 452, chown 92 0, lchown 94 0, fchown 93 55, fchownat 260 54, utime 132 0, utimes 235 0,
    futimesat 261 0, utimensat 280 88, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, setxattrat 463 463,
    removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, removexattrat 466 466
""")
"""Without namespaces, where a program has the user of the stage and sees its processes and the modes of its files."""
CLONE3 = (435, 435)
"""Its flags lie behind a pointer, which a filter cannot follow. The C library calls clone when there is no clone3."""
CLONE, SOCKETPAIR, PRCTL, FCNTL, IOCTL = (56, 220), (53, 199), (157, 167), (72, 25), (16, 29)
KILL, TGKILL, PRLIMIT = (62, 129), (234, 131), (302, 261)

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, constant."""


def program(machine: str, alone: int | None) -> list[Instruction]:
    """The filter for a machine (`os.uname().machine`). alone: the process's id where it has no namespaces, and so may
    neither start a process nor name another one; None: it has namespaces. Raises KeyError for an unknown machine.
    """
    column = list(ARCHITECTURES).index(machine)
    return list(_instructions(machine, column, alone))


def _instructions(machine: str, column: int, alone: int | None) -> Iterator[Instruction]:
    yield (_LOAD, 0, 0, _ARCHITECTURE)
    yield (_EQUAL, 1, 0, ARCHITECTURES[machine])
    yield (_RETURN, 0, 0, _KILL)
    yield (_LOAD, 0, 0, _NUMBER)
    if machine == "x86_64":
        yield from _deny(_AT_LEAST, X32, errno.ENOSYS)
    yield from _deny(_EQUAL, CLONE3[column], errno.ENOSYS)
    for numbers in (DENIED | ALONE if alone else DENIED).values():
        if numbers[column]:
            yield from _deny(_EQUAL, numbers[column], errno.EPERM)
    yield from _argument(CLONE[column], 0, _ANY_BIT, NEW_NAMESPACES, deny_match=True)
    yield from _argument(SOCKETPAIR[column], 0, _EQUAL, AF_UNIX, deny_match=False)
    if alone:
        yield from _argument(CLONE[column], 0, _ANY_BIT, CLONE_THREAD, deny_match=False)
        yield from _argument(KILL[column], 0, _EQUAL, alone, deny_match=False)
        yield from _argument(TGKILL[column], 0, _EQUAL, alone, deny_match=False)
        yield from _argument(PRLIMIT[column], 0, _EQUAL, 0, deny_match=False)
        yield from _argument(PRCTL[column], 0, _EQUAL, PR_SET_PDEATHSIG, deny_match=True)
        for command in (F_SETOWN, F_SETOWN_EX):
            yield from _argument(FCNTL[column], 1, _EQUAL, command, deny_match=True)
        for command in (FIOSETOWN, SIOCSPGRP):
            yield from _argument(IOCTL[column], 1, _EQUAL, command, deny_match=True)
    yield (_RETURN, 0, 0, _ALLOW)


def _deny(test: int, number: int, error: int) -> Iterator[Instruction]:
    yield (test, 0, 1, number)
    yield (_RETURN, 0, 0, _ERRNO | error)


def _argument(number: int, position: int, test: int, value: int, *, deny_match: bool) -> Iterator[Instruction]:
    """Deny a call by the low half of an argument: all that the kernel reads of those tested here."""
    yield (_EQUAL, 0, 4, number)
    yield (_LOAD, 0, 0, _ARGUMENTS + 8 * position)
    yield (test, 0, 1, value) if deny_match else (test, 1, 0, value)
    yield (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    yield (_LOAD, 0, 0, _NUMBER)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(*, alone: bool) -> None:
    """Filter this process and all that it starts, for good. Needs PR_SET_NO_NEW_PRIVS. Raises OSError."""
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"seccomp: no filter for {machine}")
    instructions = program(machine, os.getpid() if alone else None)
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in instructions))
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, _Program(len(instructions), ctypes.addressof(packed)), 0, 0)
