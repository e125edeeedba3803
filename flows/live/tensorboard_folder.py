"""`moxin tensorboard`: a folder of TensorBoard event files, made of what the store has of the asked results.

Whoever ran a node, and on whatever machine: the logs of its attempts are in the store. A node that trains now on this
machine is followed: its folder holds a link to the files that its run writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from flows.experiments import results
from flows.live.attempt_events import log_of, metrics_of
from flows.log_lines import StoredLines
from flows.plan import State, make_plan
from flows.profiles import Profile
from flows.tensorboard_events import record, scalars, scalars_event, start_event, version_event
from stages.core.errors import ConfigError
from stages.core.files import write_atomically
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from stages.core.messages import StageResult

MARK = ".moxin-tensorboard"
"""A file in every folder that this command filled: no other one is emptied."""


RUNNING = " (running)"
"""After the name of a node that trains now."""


@dataclass(frozen=True)
class Collected:
    """One node's event files. `live`: they grow."""

    run: str
    """Its name in TensorBoard: profile or experiment, and node."""
    key: str
    rows: int
    live: bool = False

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return {"run": self.run, "key": self.key, "rows": self.rows, "live": self.live}


def collect(
    ledger: Ledger,
    home: Path,
    folder: Path,
    asked: Sequence[tuple[Pipeline, Profile]],
    nodes: Iterable[str] = (),
) -> list[Collected]:
    """Fill a folder with the curves of nodes (none named: of all) of profiles and experiments. Raises ConfigError
    where the folder is somebody else's, or a named node has no curve.
    """
    chosen = set(nodes)
    _empty(folder)
    collected: list[Collected] = []
    for pipeline, values in asked:
        for name, result in results.of_nodes(ledger, pipeline, values).items():
            if chosen and name not in chosen:
                continue
            rows = _write(folder / values.names / name, _attempts(ledger, home, result))
            if rows:
                collected.append(Collected(f"{values.names}/{name}", result.key, rows))
        collected += _live(ledger, home, folder, pipeline, values, chosen)
    if lacking := sorted(chosen - {one.run.rpartition("/")[2].removesuffix(RUNNING) for one in collected}):
        places = ", ".join(results.place(values) for _, values in asked)
        raise ConfigError(f"no curve of {', '.join(lacking)} in {places}: it has not run there, or tells no metrics")
    return collected


def _empty(folder: Path) -> None:
    if folder.exists() and not (folder / MARK).is_file() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds files of others: name an empty folder, or none that exists")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_atomically(folder / MARK, "made by 'moxin tensorboard', which empties this folder\n")


def _attempts(
    ledger: Ledger, home: Path, result: StageResult
) -> Iterator[Iterator[tuple[float, int, dict[str, float]]]]:
    """Time, step and values of every row, attempt by attempt; of a result whose logs are gone its rows, at its end."""
    logs = [lines for attempt in ledger.attempts(result.key) if (lines := log_of(ledger, home, attempt)) is not None]
    if logs:
        yield from (map(_timed, metrics_of(lines)) for lines in logs)
    elif result.metrics_object:
        at = datetime.fromisoformat(result.attempt.ended_at).timestamp()
        yield (_row(text, at) for text in StoredLines(ledger.store, result.metrics_object))


def _timed(event: Mapping[str, Any]) -> tuple[float, int, dict[str, float]]:
    return datetime.fromisoformat(event["time"]).timestamp(), int(event["step"]), scalars(event["values"])


def _row(text: bytes, at: float) -> tuple[float, int, dict[str, float]]:
    values = json.loads(text)
    return at, int(values.pop("step")), scalars(values)


def _write(folder: Path, attempts: Iterable[Iterable[tuple[float, int, dict[str, float]]]]) -> int:
    """One event file an attempt: readers forget what earlier ones say from the step on at which a later one begins."""
    count = 0
    for number, rows in enumerate(attempts):
        with ExitStack() as files:
            stream: BinaryIO | None = None
            for at, step, values in rows:
                if stream is None:  # an attempt without rows has no file
                    folder.mkdir(parents=True, exist_ok=True)
                    stream = files.enter_context(open(folder / f"events.out.tfevents.{number:010d}.moxin", "wb"))
                    stream.write(record(version_event(at)) + record(start_event(at, step)))
                stream.write(record(scalars_event(at, step, values)))
                count += 1
    return count


def _live(
    ledger: Ledger, home: Path, folder: Path, pipeline: Pipeline, values: Profile, chosen: set[str]
) -> Iterator[Collected]:
    """Nodes that somebody works on now, whose event files a run on this machine writes."""
    select = ",".join(f"+{name}" for name in sorted(chosen)) or "full"
    for plan in make_plan(pipeline, values, ledger, select):
        name = plan.node.name
        written = home / "tensorboard" / values.names / name
        if plan.state is not State.LEASED or (chosen and name not in chosen) or not written.is_dir():
            continue
        place = folder / values.names / f"{name}{RUNNING}"
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(written.resolve(), target_is_directory=True)
        yield Collected(f"{values.names}/{place.name}", plan.key or "", 0, live=True)
