"""Landlock: files that a process may read and nothing else, where it may not make namespaces (a plain container).
Standard library alone. Constants are those of linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable

from stages.execute_code.linux import syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION, PATH_BENEATH = 1, 1
LEAST_ABI = 3
"""Linux 6.2: before, a file could be cut to nothing without a right to write."""
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
ACCESS_FS = {3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights on files that an ABI knows, by the ABI that brought the last."""
BIND_AND_CONNECT_TCP, SCOPES = 0b11, 0b11
NETWORK_ABI, SCOPE_ABI = 4, 6


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("handled_access_fs", "handled_access_net", "scoped")]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def abi() -> int:
    """The kernel's version of Landlock; 0: it has none, or it may not be used here."""
    try:
        return syscall(CREATE_RULESET, "landlock_create_ruleset", None, 0, VERSION)
    except OSError:
        return 0


def read_only(readable: Iterable[str]) -> None:
    """Let this process, and all that it starts, read these files and folders, and touch no other. Needs
    PR_SET_NO_NEW_PRIVS. Raises OSError.
    """
    version = abi()
    if version < LEAST_ABI:
        raise OSError(errno.ENOSYS, f"landlock: the kernel has version {version}, {LEAST_ABI} is needed (Linux 6.2)")
    rights = max((since, access) for since, access in ACCESS_FS.items() if since <= version)[1]
    ruleset = _Ruleset(
        handled_access_fs=rights,
        handled_access_net=BIND_AND_CONNECT_TCP if version >= NETWORK_ABI else 0,
        scoped=SCOPES if version >= SCOPE_ABI else 0,
    )
    size = 8 * (1 + (version >= NETWORK_ABI) + (version >= SCOPE_ABI))
    handle = syscall(CREATE_RULESET, "landlock_create_ruleset", ruleset, size, 0)
    for path in readable:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        access = READ_FILE | (EXECUTE | READ_DIR if os.path.isdir(path) else 0)
        access |= WRITE_FILE | TRUNCATE if path == os.devnull else 0
        rule = _PathBeneath(allowed_access=access, parent_fd=opened)
        syscall(ADD_RULE, "landlock_add_rule", handle, PATH_BENEATH, rule, 0)
        os.close(opened)
    syscall(RESTRICT_SELF, "landlock_restrict_self", handle, 0)
    os.close(handle)
