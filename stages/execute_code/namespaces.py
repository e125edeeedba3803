"""Namespaces of a program's own: no network, no other processes, and a root that holds what it may read and one small
folder in memory to write to. Standard library alone.

As root of the machine (or of a container that may mount) the root is built first, and the program then is nobody. As
any other user a user namespace gives the right to mount, where the system allows one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from stages.execute_code import linux

NOBODY = 65534
WORK = "/home/program"
"""The program's folder, inside."""
TEMPORARY = "/tmp"
"""Leads there, too, unless something that it may read lies under it."""
DEVICES = (os.devnull, "/dev/zero", "/dev/urandom", "/dev/random")
RDONLY, NOSUID, NODEV = 1, 2, 4
"""MOUNT_ATTR_*."""
FILES = 4096
"""Files and folders that a program may make."""


def enter() -> bool:
    """Unshare what the program's first process is to find when it is forked. True: with a user namespace. Raises
    OSError.
    """
    apart = linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
    if os.geteuid() == 0:
        try:
            linux.call("unshare", apart)
            return False
        except PermissionError:  # root of a container that is not root of anything else
            pass
    user, group = os.geteuid(), os.getegid()
    linux.call("unshare", apart | linux.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as stream:
            stream.write(text)
    return True


def build_root(folder: str, readable: Sequence[str], disk_kib: int) -> None:
    """Make an empty folder the root of this process, with `readable` at their own paths. Raises OSError."""
    linux.call("unshare", linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("root", folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, f"size=1m,nr_inodes={FILES},mode=755")
    for path in readable:
        _show(path, folder)
    work = folder + WORK
    os.makedirs(work, exist_ok=True)
    options = f"size={disk_kib}k,nr_inodes={FILES},mode=1777"
    linux.mount("work", work, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, options)
    if not os.path.lexists(folder + TEMPORARY):
        os.symlink(WORK, folder + TEMPORARY)
    linux.restrict_mount(folder, RDONLY | NOSUID | NODEV, recursive=False)
    linux.pivot_root(folder)
    os.chdir(WORK)


def _show(path: str, folder: str) -> None:
    """Make a path visible under the new root, read-only; a link stays a link."""
    target = folder + path
    if os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    linux.mount(path, target, None, linux.MS_BIND | linux.MS_REC)
    linux.restrict_mount(target, RDONLY | NOSUID | (0 if path in DEVICES else NODEV), recursive=True)


def become_nobody() -> None:
    """Of root: a user that owns nothing, in a user namespace of its own, where its processes are counted apart from
    other programs'. Raises OSError.
    """
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    linux.call("unshare", linux.CLONE_NEWUSER)
