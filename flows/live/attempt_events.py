"""The events of a key's attempts as they were told: from this machine while they run, from the store afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from flows.log_lines import FileLines, LineCutter, StoredLines
from stages.core.json_text import parsed_json
from stages.core.ledger import Ledger
from stages.core.records import AttemptRecord


def local_log(home: Path, key: str, epoch: int) -> Path:
    """Where the control plane of this machine writes an attempt's events."""
    return home / "logs" / "stages" / key / f"{epoch:06d}.jsonl"


def log_of(ledger: Ledger, home: Path, attempt: AttemptRecord) -> Iterable[bytes] | None:
    """The lines of an attempt's log; None where it has none, or another machine holds it still."""
    local = local_log(home, attempt.key, attempt.epoch)
    if local.is_file():
        return FileLines(local)
    stored = StoredLines(ledger.store, ledger.log_key(attempt.key, attempt.epoch))
    return stored if stored.there else None


def metrics_of(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The metric events among the lines of a log, each with its `time`, `step` and `values`."""
    for text in lines:
        if b'"metric"' in text and (event := parsed(text)).get("event") == "metric":
            yield event


def parsed(text: bytes) -> dict[str, Any]:
    """A line of a log as an event; empty where it is none, as a line that was cut off."""
    try:
        event = parsed_json(text)
    except ValueError:
        return {}
    return cast("dict[str, Any]", event) if isinstance(event, dict) else {}


class LogTail:
    """What was added to a log since it was last asked for; of the file of an attempt that still runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read, self._cutter = 0, LineCutter()

    def events(self) -> Iterator[dict[str, Any]]:
        """The new events. A file that is not there yet, or was cut, has none, and is begun anew."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return
        if size < self._read:
            self._read, self._cutter = 0, LineCutter()
        with open(self.path, "rb") as stream:
            stream.seek(self._read)
            while piece := stream.read(1 << 20):
                self._read += len(piece)
                yield from filter(None, map(parsed, self._cutter.lines(piece)))
