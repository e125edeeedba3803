"""Where the reading of a pod's log has come to, told by the time that the cluster puts before each line.

A node rotates its logs, so that the number of a line says nothing once a connection has broken: the log then begins
later than before.
"""

from __future__ import annotations

import re
import time
from datetime import datetime

CLOCK_SECONDS = 600
"""How much older lines are asked for than the last one that was read: the node's clock and this one's differ."""
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")


class LogPosition:
    """The last line that was read: its time, and how many lines of that very time there were."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None
        self._count = self._skip = 0

    def since_seconds(self) -> int | None:
        """The age of the oldest line that is needed, for a reading that begins again; None: all of the log."""
        return None if self._last is None else max(1, int(time.time()) - self._last[0] + CLOCK_SECONDS)

    def begin_again(self) -> None:
        """A new connection sends lines of the last time once more."""
        self._skip = self._count

    def unread(self, line: bytes) -> bytes | None:
        """The text of a line with its time before it; None when it was read before. A line without a time is passed."""
        match = _STAMP.match(line)
        if match is None:
            return line
        seconds = int(datetime.fromisoformat((match[1] + match[3]).decode()).timestamp())
        stamp = (seconds, int((match[2] or b"").ljust(9, b"0")))
        if self._last is not None and stamp < self._last:
            return None
        if stamp == self._last:
            if self._skip:
                self._skip -= 1
                return None
            self._count += 1
        else:
            self._last, self._count, self._skip = stamp, 1, 0
        return line[match.end() :]
