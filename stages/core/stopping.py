"""Ending a stage in order: on SIGTERM, on SIGINT, and when its launcher dies; by force when it will not stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any, Protocol

from stages.core.errors import ExitClass, Preempted
from stages.core.processes import group_members

GRACE_SECONDS = float(os.environ.get("MOXIN_GRACE_SECONDS", "25"))
"""Between being asked to stop and being cut off: time for a last checkpoint."""


class Stoppable(Protocol):
    """What is told to stop: the runtime's context."""

    @property
    def stopping(self) -> bool:
        """Whether it was told so."""
        ...

    @stopping.setter
    def stopping(self, value: bool) -> None: ...


class Stopper:
    """Turns SIGTERM, SIGINT and the launcher's death into an orderly stop, and cuts off a stage that will not stop."""

    def __init__(self) -> None:
        self.context: Stoppable | None = None
        self.cooperative = False  # true while a stage that saves checkpoints runs: it polls `stopping`
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        try:
            if os.fstat(0).st_mode & 0o170000 == 0o010000:  # a pipe: the launcher holds its other end
                threading.Thread(target=self._watch_parent, daemon=True).start()
        except OSError:
            pass

    def over(self) -> None:
        """There is nothing left to stop: how it ended is told, and a signal must not change that."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _watch_parent(self) -> None:
        while os.read(0, 4096):
            pass
        _cut_off_later()  # from here: a main thread in a long call of C code handles the signal only when it comes back
        os.kill(os.getpid(), signal.SIGTERM)

    def _on_signal(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _cut_off_later()
        if self.context is not None:
            self.context.stopping = True
        if not self.cooperative:
            raise Preempted("stopped on request")


def _cut_off_later() -> None:
    timer = threading.Timer(GRACE_SECONDS, cut_off, (b"the stage did not stop within its grace: cut off\n",))
    timer.daemon = True
    timer.start()


def cut_off(why: bytes) -> None:
    """End this process and whatever it started, now. why: a line for people."""
    with contextlib.suppress(OSError):  # whoever read it may be the one that died
        os.write(2, why)
    if os.getpgrp() == os.getpid():
        for child in group_members():
            with contextlib.suppress(OSError):  # it has just ended by itself
                os.kill(child, signal.SIGKILL)
    os._exit(ExitClass.PREEMPTED.code)
