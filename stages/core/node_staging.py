"""What is done once on a machine for all processes of an attempt there: the first to come does it, the others wait.

They wait for a lock of the file system, so nobody asks again and again; who has it and dies leaves it to the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.core.errors import ExitClass, PeerFailed
from stages.core.failures import classify
from stages.core.files import replacing

LOCK, OUTCOME = ".staging", ".staged.json"


def once(folder: Path, work: Callable[[], Any]) -> Any:
    """The JSON value of `work`, which one process does and the others read in a folder that they share. Raises
    PeerFailed with the reason for which it failed there.
    """
    with open(folder / LOCK, "a", encoding="utf-8") as lock:
        with contextlib.suppress(OSError):  # without locks, the folder is this process's alone (`shared_folder`)
            fcntl.flock(lock, fcntl.LOCK_EX)
        place = folder / OUTCOME
        if place.is_file():
            exit_class, value = json.loads(place.read_text(encoding="utf-8"))
            if exit_class != ExitClass.OK:
                raise PeerFailed(ExitClass(exit_class), value)
            return value
        try:
            value = work()
        except BaseException as error:
            _write(place, [*classify(error, folder)])
            raise
        _write(place, [ExitClass.OK, value])
        return value


def _write(place: Path, outcome: list[Any]) -> None:
    with replacing(place) as partial:
        partial.write_text(json.dumps(outcome), encoding="utf-8")
