"""A disk that is full, or nearly: the one line that says so."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from stages.core.errors import InfraError


def disk_full(error: OSError, where: Path | str) -> InfraError | None:
    """The clear error for a full disk, or None when `error` is something else."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space(where)
    return None


def no_space(where: Path | str) -> InfraError:
    """The one line for a full disk: the folder, the disk, and what is free there."""
    return InfraError(
        f"no space left on the disk that holds {where}{_space(where)}: free some, or point the folder elsewhere"
    )


def nearly_full(where: Path | str) -> bool:
    """Whether the disk of a folder has under 1% or 64 MiB free (SeaweedFS writes no more at 1%:
    volume.minFreeSpace).
    """
    try:
        usage = shutil.disk_usage(where)
    except OSError:
        return False
    return usage.free < max(usage.total // 100, min(64 << 20, usage.total // 10))


def _space(where: Path | str) -> str:
    folder = Path(where).absolute()
    while not folder.exists():
        folder = folder.parent
    usage, mount = shutil.disk_usage(folder), folder.resolve()
    while not mount.is_mount():
        mount = mount.parent
    return f" (mounted at {mount}, {usage.free:,} of {usage.total:,} bytes free)"
