"""How much of a node's events reaches Prefect's database, which keeps every line: all of a node of minutes, a bounded
number of one of weeks. The log of the stage, in the store, has everything.
"""

from __future__ import annotations

import time

PROGRESS_SECONDS, METRIC_SECONDS, PICTURE_SECONDS = 2.0, 1.0, 30.0
"""Between two updates of a progress artifact, each one request to the Prefect API, between two lines of metrics, and
between two pictures of the curves, each up to a second of a processor: at first.
"""
SHARE, LONGEST = 0.01, 300.0
"""Between two values that replace each other: this share of the time so far, and so many seconds at most."""
PICTURE_SHARE, PICTURE_LONGEST = 0.05, 3600.0
"""The same of pictures: the server keeps each, some 200 kB, for a week in an event that says that there was one."""
LINES, SECONDS_A_LINE = 2_000, 60.0
"""Lines that a node may write at once, and how soon it may write one more."""


class Spacing:
    """Lets a value that the next one replaces pass: every `least` seconds at first, and less and less often."""

    def __init__(self, least: float, share: float = SHARE, longest: float = LONGEST) -> None:
        self._least, self._share, self._longest, self._begun = least, share, longest, time.monotonic()
        self._last: float | None = None

    def due(self) -> bool:
        """Whether a value may pass now."""
        now = time.monotonic()
        gap = max(self._least, min(self._longest, self._share * (now - self._begun)))
        if self._last is not None and now - self._last < gap:
            return False
        self._last = now
        return True


class Budget:
    """Lets lines pass as long as there are not too many of them."""

    def __init__(self) -> None:
        self._left, self._filled = float(LINES), time.monotonic()
        self.dropped = 0

    def takes(self) -> bool:
        """Whether a line may pass now; one that may not is counted."""
        now = time.monotonic()
        self._left = min(LINES, self._left + (now - self._filled) / SECONDS_A_LINE)
        self._filled = now
        if self._left < 1:
            self.dropped += 1
            return False
        self._left -= 1
        return True
