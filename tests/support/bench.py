"""What the tests of the execution share: one ledger with runs over it, and jobs that say what they are told to say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from flows import plan as plans
from flows.execute import Execution
from flows.launch.base import Job
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from tests.support.limits import HANG
from tests.support.probe_pipeline import InlineLauncher, Recorder, execution, profile_of, small_pipeline

PIPE = small_pipeline()
SOURCE = PIPE["source_a"]


class Bench:
    """Executions of the small pipeline over one ledger."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger, self.folder = ledger, folder

    def begin(
        self, *overrides: str, before: Callable[[Job], None] | None = None, launcher: Any = None, **options: Any
    ) -> Execution:
        profile = profile_of(PIPE, self.folder, *overrides)
        engine = launcher or InlineLauncher(self.folder, before)
        return execution(PIPE, profile, self.ledger, self.folder, engine, **options)

    def source_key(self, node: str = "source_a") -> str:
        profile = profile_of(PIPE, self.folder)
        return plans.resolve(PIPE[node], profile, self.ledger, {}).key

    def results(self) -> dict[str, StageResult]:
        """The last result of every node."""
        found = {name: self.ledger.manifest(record.key) for name, record in self.ledger.nodes("test").items()}
        return {name: entry[0] for name, entry in found.items() if entry}


def recorder(run: Execution) -> Recorder:
    found = run.observers[0]
    assert isinstance(found, Recorder)
    return found


def started(run: Execution) -> list[str]:
    assert isinstance(run.launcher, InlineLauncher)
    return run.launcher.started


def failing(*errors: BaseException) -> Callable[[Job], None]:
    """Fail the first attempts with these, one after the other."""
    left = list(errors)

    def before(_: Job) -> None:
        if left:
            raise left.pop(0)

    return before


class ScriptedHandle:
    """A job that says what it is told to say, and does nothing."""

    id = "scripted"

    def __init__(self, events: list[dict[str, Any]], code: int, until_stopped: bool) -> None:
        self._events, self._code = events, code
        self.stopped = threading.Event()
        if not until_stopped:
            self.stopped.set()

    def events(self) -> Iterator[dict[str, Any]]:
        yield from self._events
        assert self.stopped.wait(HANG), "nobody stopped the stage"

    def wait(self) -> int:
        return self._code

    def stop(self, grace: float) -> None:
        self.stopped.set()


class ScriptedLauncher:
    """Starts scripted jobs."""

    name: ClassVar[str] = "scripted"
    detached: ClassVar[bool] = False

    def __init__(
        self, *events: dict[str, Any], code: int = 0, until_stopped: bool = False, error: Exception | None = None
    ) -> None:
        self.events, self.code, self.until_stopped, self.error = list(events), code, until_stopped, error
        self.handles: list[ScriptedHandle] = []
        self.jobs: list[Job] = []

    def start(self, job: Job) -> ScriptedHandle:
        self.jobs.append(job)
        if self.error:
            raise self.error
        self.handles.append(ScriptedHandle(self.events, self.code, self.until_stopped))
        return self.handles[-1]

    def take_over(self, id: str, job: Job) -> None:
        return None  # a stage ends with its control plane

    def reap(self, run_id: str | None = None) -> list[str]:
        return []
