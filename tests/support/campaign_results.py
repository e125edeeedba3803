"""What came of the trials of a campaign: a line for each as it ends, a file that a campaign which was interrupted goes
on from, and a table at the end.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stages.core.keys import sha256
from tests.support.paths import ROOT


@dataclass
class Hit:
    """What was done to a run, and when."""

    signal: str
    target: str
    share: float
    """Of the processor time of an undisturbed run; 0: all the time."""
    at: str
    """The training that was not published yet, and was next; "": all were."""

    def __str__(self) -> str:
        when = f" at {self.share:.0%}" if self.share else ""
        return f"{self.signal} {self.target}{when}" + (f" ({self.at})" if self.at else "")


@dataclass
class Trial:
    """What was done in one trial, and what came of it."""

    seed: int
    way: str
    hits: list[Hit] = field(default_factory=list[Hit])
    runs: int = 1
    resumed: int = 0
    recovery: float | None = None
    """Seconds from the start of the rerun (where none was needed: from the last hit) to the end of the stage that was
    interrupted, without the steps that it still had to do. None: nothing was interrupted.
    """
    seconds: float = 0.0
    """Of the whole trial."""
    problem: str = ""
    """What did not hold; "": all did."""
    parts: dict[str, float] = field(default_factory=dict[str, float])
    """What recovery was spent on, in seconds."""

    def __str__(self) -> str:
        took = "" if self.recovery is None else f", recovered in {self.recovery:.1f} s"
        parts = ", ".join(f"{what} {seconds:.1f}" for what, seconds in self.parts.items())
        hits = ", ".join(map(str, self.hits)) or "it was over before"
        end = f"FAILED: {self.problem.splitlines()[0]}" if self.problem else "ok"
        return (
            f"trial {self.seed} ({self.way}): {hits}; {self.runs} runs, {self.resumed} resumed{took}"
            f"{f' ({parts})' * bool(parts)}; {end}"
        )

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(hit.target for hit in self.hits)) or ["nothing"]


class Results:
    """The trials of one state of the code, of which each that ended well is made once."""

    def __init__(self, path: Path | None, version: str = "") -> None:
        """path: the file of JSON lines that is gone on with; None: nothing is kept."""
        self._path, self._version = path, version or code_version()
        self.trials: list[Trial] = []
        self._before = {trial.seed: trial for trial in self._read() if not trial.problem}

    def _read(self) -> Iterator[Trial]:
        if self._path is None or not self._path.is_file():
            return
        for line in self._path.read_text(encoding="utf-8").splitlines():
            row: dict[str, Any] = json.loads(line)
            if row.pop("version") == self._version:
                yield Trial(**row | {"hits": [Hit(**hit) for hit in row["hits"]]})

    def of(self, seed: int, make: Callable[[], Trial]) -> tuple[Trial, bool]:
        """The trial of a seed, and whether it was made now. What `make` returns is written down at once."""
        trial = self._before.get(seed)
        new = trial is None
        if trial is None:
            trial = make()
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, "a", encoding="utf-8") as stream:
                    stream.write(json.dumps(asdict(trial) | {"version": self._version}) + "\n")
        self.trials.append(trial)
        return trial, new


def table(trials: Sequence[Trial]) -> str:
    """How long recovery took, for each target and for all."""
    targets = sorted({target for trial in trials for target in trial.targets})
    groups = [(target, [t for t in trials if target in t.targets]) for target in targets]
    lines = [
        "| target | trials | failed | recovered | median s | worst s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join([*lines, *(_row(name, some) for name, some in [*groups, ("all", list(trials))])])


def _row(name: str, trials: Iterable[Trial]) -> str:
    some = list(trials)
    took = sorted(trial.recovery for trial in some if trial.recovery is not None)
    times = f"{statistics.median(took):.1f} | {took[-1]:.1f}" if took else " | "
    return f"| {name} | {len(some)} | {sum(bool(t.problem) for t in some)} | {len(took)} | {times} |"


def code_version() -> str:
    """The commit, and what was changed since: what a trial says holds for its code alone."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("diff", "HEAD")
    return git("rev-parse", "HEAD") + (f"+{sha256(changed.encode())[:12]}" if changed else "")
