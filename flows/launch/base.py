"""The Launcher protocol: what Docker, Slurm, Kubernetes and plain processes have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from stages.core.contracts import Resources, StageRequest


@dataclass(frozen=True)
class Job:
    """One attempt to be run somewhere."""

    request: StageRequest
    resources: Resources
    env: str
    """Name of the environment (folder in containers/) whose image runs the stage."""

    @property
    def labels(self) -> dict[str, str]:
        """What a container is marked with, so that orphans are found. Never a secret."""
        request = self.request
        return {
            "moxin.run": request.run_id,
            "moxin.node": request.node,
            "moxin.key": request.key,
            "moxin.epoch": str(request.lease.epoch),
        }


class Handle(Protocol):
    """A started job."""

    @property
    def id(self) -> str:
        """The engine's name for it (process number, container id, job id)."""
        ...

    def events(self) -> Iterator[dict[str, Any]]:
        """The stage's events as they come, until it ends. Lines that are no events become `log` events."""
        ...

    def wait(self) -> int:
        """Block until the end; the exit status (negative: killed by that signal)."""
        ...

    def stop(self, grace: float) -> None:
        """Ask the job to stop, and cut it off after `grace` seconds. Returns at once; safe to call twice."""
        ...


class Launcher(Protocol):
    """Starts jobs, and removes what a dead control plane left behind."""

    name: ClassVar[str]

    def start(self, job: Job) -> Handle:
        """Start a job. Raises InfraError when the engine cannot."""
        ...

    def reap(self, run_id: str | None = None) -> list[str]:
        """Stop jobs of a run (None: of runs whose control plane is dead); returns their ids."""
        ...
