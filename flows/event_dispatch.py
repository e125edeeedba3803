"""Who watches a run, kept apart from it: nothing that an observer does, raises or waits for reaches the stage.

Each observer has a queue of its own, which a thread of its own empties. One that stands still (a terminal that is held,
a server that hangs) loses log lines, which are counted; one that raises is told of once, to the others, and counted.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Generator, Mapping
from typing import Any, Protocol

QUEUE = 10_000
"""Events that wait for one observer. What comes on top of them is dropped, but for changes of state."""
LINGER_SECONDS = 1.0
"""How long a queue's thread waits for the next event before it ends."""
FLUSH_SECONDS = 5.0
"""How long a node's end waits for observers to catch up; one that does not is never waited for again."""


class Observer(Protocol):
    """Whoever wants to see a node's events as they come."""

    def event(self, node: str, event: Mapping[str, Any]) -> None:
        """Take one event of a node: the stage's own, or the execution's (`state`). Called from one thread at a time."""
        ...


class EventDispatcher:
    """The observers of one run: those of every node, and those of one."""

    def __init__(self, everywhere: list[Observer]) -> None:
        """everywhere: the list itself is kept: who is appended to it later sees what comes then."""
        self._everywhere = everywhere
        self._of: dict[str, tuple[Observer, ...]] = {}
        self._queues: dict[int, _ObserverQueue] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def subscribe(self, node: str, observer: Observer) -> Generator[None]:
        """Show the events of one node to an observer. At the end it has seen all of them, unless it stands still."""
        with self._lock:
            self._of[node] = (*self._of.get(node, ()), observer)
        queue = self._queue_of(observer)
        try:
            yield
        finally:
            with self._lock:
                self._of[node] = tuple(o for o in self._of[node] if o is not observer)
            queue.flush()

    def publish(self, node: str, event: Mapping[str, Any]) -> None:
        """Show an event. Returns at once and never raises."""
        for observer in (*self._everywhere, *self._of.get(node, ())):
            self._queue_of(observer).put(node, event)

    def tell(self, node: str, event: str, **fields: Any) -> None:
        """Show an event that the control plane makes itself, of the kind `event`."""
        self.publish(node, {"event": event, **fields})

    def flush(self) -> None:
        """Wait until everybody has seen everything, within bounds."""
        for queue in list(self._queues.values()):
            queue.flush()

    def problems(self) -> list[str]:
        """What went wrong with observers, a line for each that had trouble."""
        return [line for queue in list(self._queues.values()) if (line := queue.problems())]

    def _queue_of(self, observer: Observer) -> _ObserverQueue:
        with self._lock:
            queue = self._queues.get(id(observer))
            if queue is None:
                queue = self._queues[id(observer)] = _ObserverQueue(observer, self._broke)
            return queue

    def _broke(self, broken: _ObserverQueue, node: str, error: BaseException) -> None:
        """Tell the others, once, that one of them fails."""
        message = f"{broken.name} cannot show all of this run ({type(error).__name__}: {error}); the run goes on"
        for observer in (*self._everywhere, *self._of.get(node, ())):
            queue = self._queue_of(observer)
            if queue is not broken:
                queue.put(node, {"event": "log", "level": "warning", "message": message})


class _ObserverQueue:
    """The events that one observer has yet to see."""

    def __init__(self, observer: Observer, broke: Any) -> None:
        self.name = type(observer).__name__
        self.errors = self.dropped = 0
        self._observer, self._broke = observer, broke
        self._context = (
            contextvars.copy_context()
        )  # Prefect knows by it which task is meant; each thread enters a copy, as one may still be leaving
        self._queue: deque[tuple[str, Mapping[str, Any]]] = deque()
        self._ready = threading.Condition()
        self._running = self._busy = self._still = False

    def put(self, node: str, event: Mapping[str, Any]) -> None:
        with self._ready:
            if len(self._queue) >= QUEUE and event.get("event") not in ("state", "done"):
                self.dropped += 1
                return
            self._queue.append((node, event))
            self._ready.notify_all()
            if not self._running:
                self._running = True
                threading.Thread(
                    target=self._context.copy().run, args=(self._deliver,), name=f"moxin {self.name}", daemon=True
                ).start()

    def flush(self) -> None:
        with self._ready:
            if not self._still and not self._ready.wait_for(lambda: not self._queue and not self._busy, FLUSH_SECONDS):
                self._still = True

    def problems(self) -> str | None:
        with self._ready:
            dropped = self.dropped + (len(self._queue) if self._still else 0)
        parts = [f"failed {self.errors} times"] if self.errors else []
        parts += [f"{dropped} events were not shown, because it stood still"] if dropped else []
        return f"{self.name}: {', '.join(parts)}; the logs of the stages have everything" if parts else None

    def _deliver(self) -> None:
        while True:
            with self._ready:
                self._busy = False
                self._ready.notify_all()
                if not self._ready.wait_for(lambda: bool(self._queue), LINGER_SECONDS):
                    self._running = False
                    return
                node, event = self._queue.popleft()
                self._busy = True
            try:
                self._observer.event(node, event)
            except Exception as error:
                self.errors += 1
                if self.errors == 1:
                    self._broke(self, node, error)
