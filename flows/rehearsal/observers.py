"""Who watches a rehearsal's stages: what forces each to stop once, and what keeps each node's log for people."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stages.core.records import now


class CanStop(Protocol):
    """The execution of a run."""

    def stop_one(self, node: str) -> None:
        """Ask one stage to stop."""
        ...


@dataclass
class Stops:
    """Has each of some nodes stopped after its first checkpoint, as a machine that is taken away would."""

    execution: CanStop | None = None
    left: set[str] = field(default_factory=set[str])
    """Nodes that are still to be stopped."""
    stopped: dict[str, int] = field(default_factory=dict[str, int])
    """By node: the step of that checkpoint."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def event(self, node: str, event: Mapping[str, Any]) -> None:
        """Ask for the stop when a checkpoint is told of."""
        if event["event"] != "checkpoint" or self.execution is None:
            return
        with self.lock:
            if node not in self.left:
                return
            self.left.discard(node)
            self.stopped[node] = int(event["step"])
        self.execution.stop_one(node)


class NodeLogs:
    """Writes what each node says into a file of its own: `<folder>/<node>.log`, anew with each rehearsal."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._begun = folder, set[str]()

    def path(self, node: str) -> Path:
        """The file of a node."""
        return self._folder / f"{node}.log"

    def event(self, node: str, event: Mapping[str, Any]) -> None:
        """Add what is for people."""
        kind = event["event"]
        if kind not in ("log", "state", "done"):
            return
        text = str(event.get("message") or event.get("state") or event.get("exit") or "")
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self.path(node), "a" if node in self._begun else "w", encoding="utf-8") as stream:
            stream.write(f"{now()} {event.get('level', kind)}: {text}\n")
        self._begun.add(node)
