"""Whether a failed attempt is made again: a table of how it ended, what it saved and what was tried before. No side
effects.

| ended | again | uses up a retry |
| --- | --- | --- |
| preempted | yes | unless it saved a new checkpoint, which also gives back those used before |
| oom | only with a smaller configuration (`Stage.smaller`) | unless it saved a new checkpoint |
| infra | yes, after pauses that grow, for `patience` seconds since the first failure: pauses and attempts | no |
| config, input, bug | never: it would end the same way | |

The first attempt that lasted longer than `patience` counts as none: the trouble that ended it is a new one. A second
such attempt without progress counts in full, so that hours are lost twice, not for ever.

`retries = 0` means what it says: what was preempted or ran out of memory is left for a person.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from stages.core.errors import ExitClass

RETRYABLE = (ExitClass.OOM, ExitClass.PREEMPTED, ExitClass.INFRA)
"""What may go better another time."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds before the first and the later tries after trouble with the infrastructure. Each pause is twice the one
before.
"""


@dataclass(frozen=True)
class Tries:
    """What a node has used up so far."""

    used: int = 0
    spent: float = 0.0
    """Seconds since the first failure of the infrastructure after the last progress: pauses, and attempts that failed
    again.
    """
    pauses: int = 0
    had_long_attempt: bool = False
    """Whether an attempt since the last progress failed after more than the whole patience."""

    def pause(self, patience: float, chance: float | None = None) -> float | None:
        """Seconds before the next try of something that failed for the infrastructure's sake; None when patience is at
        its end.

        chance: 0 to 1, at random by default: nodes that a store let down together do not all come back at once.
        """
        left = patience - self.spent
        if left <= 0:
            return None
        full = min(
            LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.pauses, 16)
        )  # a long patience has more pauses than a float has powers
        return min(left, full * (0.5 + (random.random() if chance is None else chance)))

    def after_pause(self, seconds: float) -> Tries:
        return replace(self, spent=self.spent + seconds, pauses=self.pauses + 1)

    def after_attempt(self, ended: ExitClass, seconds: float, patience: float) -> Tries:
        """With the time of an attempt that failed for the infrastructure's sake. Of the first one nothing is counted;
        the first that outlasted all patience starts the count anew, since what ended it is other trouble.
        """
        if ended is not ExitClass.INFRA:
            return self
        if seconds > patience and not self.had_long_attempt:
            return replace(self, spent=0.0, pauses=0, had_long_attempt=True)
        return replace(self, spent=self.spent + seconds) if self.pauses else self


@dataclass(frozen=True)
class Verdict:
    """What is done after a failed attempt, and why in one phrase."""

    again: bool
    why: str
    tries: Tries
    pause: float = 0.0
    smaller: bool = False


def judge(
    ended: ExitClass,
    progress: bool,
    tries: Tries,
    retries: int,
    patience: float,
    smaller: bool = False,
    chance: float | None = None,
) -> Verdict:
    """Decide about one failed attempt.

    progress: it saved a checkpoint further on than any before it. smaller: the stage has a smaller configuration to
    offer.
    """
    if ended not in RETRYABLE:
        return Verdict(False, "it would end the same way again", tries)
    if progress:
        tries = Tries()
    if ended is ExitClass.INFRA:
        pause = tries.pause(patience, chance)
        if pause is None:
            return Verdict(False, f"given up after {_duration(patience)} of trying", tries)
        return Verdict(True, f"trying again in {_duration(pause)}", tries.after_pause(pause), pause)
    if ended is ExitClass.OOM and not smaller:
        return Verdict(False, "it would need as much memory again, and nothing of it can be made smaller", tries)
    how = "with a smaller configuration" if ended is ExitClass.OOM else "as it was"
    if progress and retries:
        return Verdict(
            True,
            f"trying again {how}; it had saved a new checkpoint, so this uses up no retry",
            tries,
            smaller=ended is ExitClass.OOM,
        )
    if tries.used >= retries:
        return Verdict(False, f"no retry is left of {retries}" if retries else "the profile allows no retry", tries)
    tries = replace(tries, used=tries.used + 1)
    return Verdict(True, f"trying again {how}: retry {tries.used} of {retries}", tries, smaller=ended is ExitClass.OOM)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
