"""How a stage ends: the class of an attempt's exit, and the errors that a stage raises with one clear line for the
user.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class ExitClass(enum.StrEnum):
    """How an attempt ended; the value decides whether it is made again (`flows/retry.py`)."""

    OK = "ok"
    CONFIG = "config"  # the user's configuration cannot work
    INPUT = "input"  # the data cannot be used
    INFRA = "infra"  # the store or the disk let the stage down
    OOM = "oom"
    PREEMPTED = "preempted"  # stopped from outside; a checkpoint may be there
    BUG = "bug"

    @property
    def code(self) -> int:
        """The process exit status that carries this class."""
        return _EXIT_CODES[self]

    @classmethod
    def from_code(cls, code: int) -> ExitClass:
        """Map a process exit status back. A signal (negative, or 128 + n) that nobody asked for is `preempted` for
        TERM, INT and HUP, `oom` for KILL is *not* assumed (kill -9 by a person looks the same): it is `preempted`."""
        for exit_class, known in _EXIT_CODES.items():
            if code == known:
                return exit_class
        signal = -code if code < 0 else code - 128
        return cls.PREEMPTED if signal in (1, 2, 9, 15) else cls.BUG


_EXIT_CODES = {
    ExitClass.OK: 0,
    ExitClass.BUG: 1,
    ExitClass.CONFIG: 64,
    ExitClass.INPUT: 65,
    ExitClass.INFRA: 69,
    ExitClass.OOM: 71,
    ExitClass.PREEMPTED: 75,
}


class StageError(Exception):
    """An expected failure with one clear line for the user. Raise a subclass, never this."""

    exit_class: ClassVar[ExitClass] = ExitClass.BUG


class ConfigError(StageError):
    """The configuration cannot work: name the key, its value, and what to do."""

    exit_class = ExitClass.CONFIG


class InputError(StageError):
    """The input cannot be used: name the object and the place in it."""

    exit_class = ExitClass.INPUT


class InfraError(StageError):
    """The store, the disk or another service failed: name it."""

    exit_class = ExitClass.INFRA


class PeerFailed(StageError):
    """Another process of the same stage failed, on this machine or on another: its class and its reason are this one's
    too.
    """

    def __init__(self, exit_class: ExitClass, message: str) -> None:
        super().__init__(message)
        self.exit_class = exit_class  # type: ignore[misc]


class Preempted(StageError):
    """The stage was asked to stop and did so at a safe place."""

    exit_class = ExitClass.PREEMPTED
