"""What the steps of a training need, made ahead of them in a thread, in order, up to so many bytes.

    ahead = Ahead(read, steps, 16 << 20)      # read(step) -> (what step n needs, its bytes)
    ahead.take(step)

The steps have their data while the store is away for as long as what lies ready lasts. What `read` raises is raised by
`take`, at the step whose data could not be read, and not before; a store that cannot be reached is asked on until then.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from stages.core.store_errors import Unavailable

T = TypeVar("T")
MOST_STEPS = 512
"""Steps that lie ready, however small they are."""
PAUSE = 1.0
"""Seconds before a store is asked again that has used up the patience of its client."""


class Ahead(Generic[T]):
    """Of one training. At least one step lies ready, or is being made, while another is worked on."""

    def __init__(self, read: Callable[[int], tuple[T, int]], steps: int, most_bytes: int) -> None:
        """steps: how many there are: none after them is made ahead."""
        self._read, self._steps, self._most_bytes = read, steps, most_bytes
        self._reading = threading.Lock()
        self._changed = threading.Condition()
        self._ready: deque[tuple[T, int] | BaseException] = deque()
        self._bytes, self._next, self._waiting = 0, -1, False
        self._thread: threading.Thread | None = None
        self._seconds, self._count = 0.0, 0

    @property
    def seconds(self) -> float:
        """What the data of a step takes to make, on average; 0: none was made."""
        return self._seconds / max(1, self._count)

    def take(self, step: int) -> T:
        """What a step needs. Any step may be taken; the one after it costs no waiting."""
        with self._changed:
            if step != self._next:
                self._drop()
                self._next = step
            self._waiting = True
            while not self._ready:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, args=(step,), name="read-ahead", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
                self._changed.wait()
            self._waiting = False
            item = self._ready.popleft()
            if isinstance(item, BaseException):
                raise item
            self._bytes, self._next = self._bytes - item[1], step + 1
            self._changed.notify_all()
            return item[0]

    def close(self) -> None:
        """Let the thread end and what lies ready go."""
        with self._changed:
            self._drop()

    def _drop(self) -> None:
        self._ready.clear()
        self._bytes, self._next, self._thread = 0, -1, None
        self._changed.notify_all()

    def _work(self, step: int) -> None:
        me = threading.current_thread()
        while True:
            with self._reading:  # one that was left may still be at it
                item = self._made(step)
            with self._changed:
                if self._thread is not me:
                    return
                if isinstance(item, Unavailable) and (self._ready or not self._waiting):
                    self._changed.wait(PAUSE)
                    continue
                self._ready.append(item)
                step += 1
                if not isinstance(item, BaseException):
                    self._bytes += item[1]
                if isinstance(item, BaseException) or step >= self._steps:
                    self._thread = None
                self._changed.notify_all()
                while self._thread is me and (self._bytes >= self._most_bytes or len(self._ready) >= MOST_STEPS):
                    self._changed.wait()
                if self._thread is not me:
                    return

    def _made(self, step: int) -> tuple[T, int] | BaseException:
        begun = time.perf_counter()
        try:
            read = self._read(step)
            self._seconds, self._count = self._seconds + time.perf_counter() - begun, self._count + 1
            return read
        except BaseException as error:
            return error
