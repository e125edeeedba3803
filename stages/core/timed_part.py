"""How much of a stage's time one part of its work takes: what a forecast of a larger run makes larger, apart from what
is the same however much there is to do (imports, a model that is loaded, files that are written).

    part = TimedPart()
    with part:
        ...
        with part.left_out():  # within it: a model is loaded
            ...
    ctx.stat(measuring=part.spent())
"""

from __future__ import annotations

import resource
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager


class TimedPart:
    """Seconds of all that is done inside, and processor seconds of this process and of its children that have ended."""

    def __init__(self) -> None:
        self._sums = [0.0, 0.0]
        self._begun = (0.0, 0.0)

    def __enter__(self) -> TimedPart:
        self._begun = _clocks()
        return self

    def __exit__(self, *error: object) -> None:
        self._add(self._begun, 1.0)

    @contextmanager
    def left_out(self) -> Generator[None]:
        """What is done inside does not count."""
        begun = _clocks()
        try:
            yield
        finally:
            self._add(begun, -1.0)

    def spent(self) -> dict[str, float]:
        """For the statistics of a result."""
        seconds, cpu = self._sums
        return {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3)}

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """What was spent since `spent` gave that."""
        return {name: round(value - before[name], 3) for name, value in self.spent().items()}

    def _add(self, begun: tuple[float, float], sign: float) -> None:
        for number, (now, then) in enumerate(zip(_clocks(), begun, strict=True)):
            self._sums[number] += sign * (now - then)


ONCE = TimedPart()
"""What this process does once a machine, however much there is to do: it compiles kernels, whose code is kept on disk.
A result says it (statistic `once`).
"""


def _clocks() -> tuple[float, float]:
    """Seconds and processor seconds, each from a beginning of its own."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.monotonic(), sum(one.ru_utime + one.ru_stime for one in used)
