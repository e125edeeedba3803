"""Where the processes of a training find each other before they train: each joins before it stages its inputs in, and
says when it is ready.

    with meeting():             # the runtime, around staging and the stage
        ...
        current().wait(stopping)    # `parallel_dims.distributed`: all are ready, or somebody failed

They may take very unequally long until then, and are waited for. One that fails says why, and the others end with its
reason; one that dies stops giving signs of life, and the others end as preempted, after a minute and not after hours.

A thread alone talks to the others: whatever becomes of the machine that holds their meeting place, the process itself
handles its signals and goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from stages.core.errors import ExitClass, PeerFailed, Preempted, StageError
from stages.core.events import own_rank, world_size
from stages.core.failures import classify
from stages.core.workspace import scratch
from stages.lib.training.lost_process import Watch

JOINING = timedelta(minutes=10)
"""How long a process tries to reach the others' meeting place, and is waited for until it has: they are started
together."""
KNOCK = timedelta(seconds=3)
"""Of one try."""
PATIENCE = timedelta(hours=6)
"""How long the others are waited for while they give signs of life."""
BEAT = timedelta(seconds=1)
"""Between two signs of life."""
SILENCE = timedelta(minutes=1)
"""After which a process counts as lost, or the meeting place."""
PARTING = timedelta(seconds=5)
"""How long a process that fails tries to say so."""
LOST = "another process of this stage was lost; the next attempt goes on from the last checkpoint"
OUTCOME, READY = "meeting/outcome", "meeting/ready"


class Meeting:
    """This process's place in it."""

    def __init__(self) -> None:
        """Raises Preempted when the others cannot be reached."""
        self._rank, self._size = own_rank(), world_size()
        try:
            self.store = _store(self._rank, self._size)
            self._show_life()  # at once: whoever is lost before its first sign counts as one that has not come yet
        except (OSError, dist.DistError) as error:
            raise Preempted(LOST) from error
        self._ready, self._word = False, ""
        """Whether this process is, and what else it has to say."""
        self._watch: Watch | None = None
        self._outcome: tuple[ExitClass, str] | None = None
        """What all go by: of the first that failed, or that all are ready."""
        self._reached = time.monotonic()
        self._over, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._take_part, daemon=True)
        self._thread.start()

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Say that this process is ready, and wait until all are. Raises PeerFailed with the reason of one that failed,
        Preempted when one was lost, or this one is asked to stop.
        """
        self._ready, until = True, time.monotonic() + PATIENCE.total_seconds()
        self._wake.set()
        while self._outcome is None and self._thread.is_alive():
            if stopping():
                raise Preempted("stopped on request")
            if time.monotonic() > min(until, self._reached + SILENCE.total_seconds()):
                raise Preempted(LOST)
            self._thread.join(BEAT.total_seconds())
        self._thread.join(PARTING.total_seconds())
        if self._outcome is None:
            raise Preempted(LOST)
        if self._outcome[0] is not ExitClass.OK:
            raise PeerFailed(*self._outcome)

    def watch(self) -> None:
        """From here on: whoever dies is missed, and not waited for (`stages.lib.training.lost_process`)."""
        self._watch = Watch(_store(self._rank, self._size, False), self._rank, self._size)

    def tell(self, error: BaseException) -> StageError | None:
        """Let the others know why this process fails, if they still wait. What was the reason when this process was
        only asked to stop, as its launcher asks when another has failed; else None.
        """
        if self._watch is not None and not isinstance(error, Preempted):  # who is stopped may be the first that saved
            self._watch.end(failed=True)
        if self._thread.is_alive() and not isinstance(error, PeerFailed):
            self._word = json.dumps(classify(error, scratch()))
            self.end()
        if not isinstance(error, Preempted) or self._outcome is None:
            return None
        return None if self._outcome[0] in (ExitClass.OK, ExitClass.PREEMPTED) else PeerFailed(*self._outcome)

    def end(self) -> None:
        """No more signs of life."""
        if self._watch is not None:
            self._watch.end()
        self._over.set()
        self._wake.set()
        self._thread.join(PARTING.total_seconds())

    # --- in the thread ------------------------------------------------------------------------------------------

    def _take_part(self) -> None:
        seen: dict[int, tuple[int, float]] = {}
        announced = False
        with contextlib.suppress(dist.DistError):  # who waits sees that this has ended
            while True:
                over = self._over.is_set()
                self._show_life()
                if self._word:
                    self._say(self._word)
                elif self._ready and not announced:
                    announced = True
                    if self.store.add(READY, 1) == self._size:
                        self._say(json.dumps([ExitClass.OK, ""]))
                if self._rank == 0 and (lost := self._silent(seen)) is not None:
                    self._say(json.dumps([ExitClass.PREEMPTED, f"process {lost} gives no sign of life: {LOST}"]))
                if self.store.check([OUTCOME]):
                    exit_class, message = json.loads(self.store.get(OUTCOME))
                    self._outcome = ExitClass(exit_class), message
                    return
                if over:
                    return
                self._reached = time.monotonic()
                self._wake.wait(BEAT.total_seconds())
                self._wake.clear()

    def _show_life(self) -> None:
        self.store.add(f"meeting/alive/{self._rank}", 1)

    def _say(self, word: str) -> None:
        """The first word stands."""
        self.store.compare_set(OUTCOME, "", word)

    def _silent(self, seen: dict[int, tuple[int, float]]) -> int | None:
        """A process that has given no sign for too long, or never came. seen: how often each had, and since when."""
        for rank in range(self._size):
            count, now = self.store.add(f"meeting/alive/{rank}", 0), time.monotonic()
            if rank not in seen or seen[rank][0] != count:
                seen[rank] = count, now
            elif now - seen[rank][1] > (SILENCE if count else JOINING).total_seconds():
                return rank
        return None


def _store(rank: int, size: int, may_host: bool = True) -> Any:
    """What torchrun's agent holds for its processes; without an agent, the first process does, once."""
    host = may_host and rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    until = time.monotonic() + JOINING.total_seconds()
    while not host:
        try:  # in the store's own tries, no signal is handled
            socket.create_connection(place, KNOCK.total_seconds()).close()
            break
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)
    store = dist.TCPStore(*place, size, host, SILENCE, wait_for_workers=False, multi_tenant=True)  # pyright: ignore[reportPrivateImportUsage]
    return dist.PrefixStore(f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # pyright: ignore[reportPrivateImportUsage]


_meeting: Meeting | None = None


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """Join the other processes of this stage, if there are any; one that has joined already stays where it is."""
    global _meeting
    if world_size() == 1 or _meeting is not None:
        yield
        return
    _meeting = Meeting()
    try:
        yield
    except BaseException as error:
        if reason := _meeting.tell(error):
            raise reason from error
        raise
    finally:
        _meeting.end()
        _meeting = None


def current() -> Meeting:
    """The meeting that this process has joined."""
    assert _meeting is not None
    return _meeting
