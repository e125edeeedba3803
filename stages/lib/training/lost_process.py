"""While processes train together: when one dies, those that wait for it end soon, and do not wait out a grace that is
for checkpoints.

Who waits in an exchange over gloo is told by the broken connection. Who waits for a GPU, which waits for one that
nobody drives any more, hears nothing, and handles no signal: torchrun would end it after `grace_seconds`. So a thread
looks once a second whether the processes of its own machine are there (by their numbers and starting times, never by
how long they have been silent), and the first that misses one tells all. Whoever is still in the training half a minute
later ends there, as preempted: the next attempt begins within a minute, whatever grace the stage has.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from stages.core.processes import host_identity, process_alive, process_identity
from stages.core.stopping import cut_off

BEAT = timedelta(seconds=1)
"""Between two looks."""
LEAVING = timedelta(seconds=30)
"""In which a process may end by itself, in order, when another has died."""
PARTING = timedelta(seconds=5)
"""How long a process that leaves tries to say so."""
DIED = "training/died"
WHY = b"another process of this stage died, and this one waits for it: it ends, the next attempt goes on\n"


class Watch:
    """This process's part in it, from the first exchange to its end."""

    def __init__(self, store: Any, rank: int, size: int, leave: Callable[[bytes], object] = cut_off) -> None:
        """store: a connection of its own, as a thread uses it. leave: ends this process."""
        self._store, self._rank, self._size, self._leave = store, rank, size, leave
        self._over, self._failed = threading.Event(), False
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self, failed: bool = False) -> None:
        """This process is done with the training. failed: before the others are, which then need not wait for it."""
        self._failed = failed
        self._over.set()
        self._thread.join(PARTING.total_seconds())

    def _look(self) -> None:
        with contextlib.suppress(dist.DistError):  # the machine that holds the store is gone: exchanges break
            self._store.set(f"training/process/{self._rank}", json.dumps([host_identity(), process_identity()]))
            neighbours: dict[int, str] | None = None
            while not self._over.wait(BEAT.total_seconds()):
                neighbours = self._neighbours() if neighbours is None else neighbours
                if any(self._died(rank, identity) for rank, identity in (neighbours or {}).items()):
                    self._store.set(DIED, "")
                if self._store.check([DIED]):
                    if not self._over.wait(LEAVING.total_seconds()):
                        self._leave(WHY)
                    break
            self._store.set(f"training/left/{self._rank}", "")
            if self._failed:
                self._store.set(DIED, "")

    def _neighbours(self) -> dict[int, str] | None:
        """The other processes of this machine; None until all have said where they are."""
        names = {rank: f"training/process/{rank}" for rank in range(self._size)}
        if not self._store.check(list(names.values())):
            return None
        places = {rank: json.loads(self._store.get(name)) for rank, name in names.items()}
        here = host_identity()
        return {rank: process for rank, (host, process) in places.items() if host == here and rank != self._rank}

    def _died(self, rank: int, identity: str) -> bool:
        """Whether it is not there, and did not say that it leaves."""
        return not process_alive(identity) and not self._store.check([f"training/left/{rank}"])
