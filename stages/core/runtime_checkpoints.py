"""Checkpoints of a running attempt: saved and found through the ledger, with the metric rows that belong to each."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core.artifacts import FileEntry
from stages.core.errors import InfraError
from stages.core.events import Events, own_rank
from stages.core.leases import LeaseLost
from stages.core.ledger import Ledger
from stages.core.messages import StageRequest
from stages.core.records import DamagedRecord
from stages.core.store_errors import Damaged

METRICS_FILE = ".metrics.jsonl"
_LEFT_OUT = "left_out"
"""In the place of a part of a checkpoint that could not be stored: why."""


class RuntimeCheckpoints:
    """Checkpoints of the request's key; the metric rows up to its step travel with each one."""

    def __init__(self, request: StageRequest, ledger: Ledger, events: Events, root: Path) -> None:
        self._lease, self._ledger, self._events, self._root = request.lease, ledger, events, root
        self._metrics = root / METRICS_FILE
        self.resumed_from: int | None = None
        self.stored: dict[tuple[int, str], str] = {}
        """`{(size, SHA-256): object}` of the files of the newest checkpoint of this attempt, or that it began from: the
        result may hold the same.
        """

    def save(self, step: int, directory: Path) -> None:
        self.commit(step, self.upload(step, directory))

    def upload(self, step: int, directory: Path) -> list[dict[str, Any]]:
        """Trouble with the store is no reason to end a training: the checkpoint is then left out, and `commit` is
        told.
        """
        try:
            files = self._ledger.upload_checkpoint(self._lease, step, Path(directory))
        except InfraError as error:
            if isinstance(error, LeaseLost):
                raise
            return [{_LEFT_OUT: str(error)}]
        return [entry.model_dump() for entry in files]

    def commit(self, step: int, parts: Sequence[dict[str, Any]]) -> None:
        try:
            self._commit(step, parts)
        except InfraError as error:
            if isinstance(error, LeaseLost):
                raise
            self._log(f"no checkpoint at step {step}: {error}; it is tried again at the next", "warning")

    def _commit(self, step: int, parts: Sequence[dict[str, Any]]) -> None:
        with tempfile.TemporaryDirectory(dir=self._root) as folder:
            rows = self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [row for row in rows if json.loads(row)["step"] <= step]  # the stage may have gone on meanwhile
            (Path(folder) / METRICS_FILE).write_text("".join(kept), encoding="utf-8")
            parts = [*parts, *self.upload(step, Path(folder))]
        if left_out := [part[_LEFT_OUT] for part in parts if _LEFT_OUT in part]:
            raise InfraError(left_out[0])
        files = tuple(FileEntry.model_validate(part) for part in parts)
        self._ledger.commit_checkpoint(self._lease, step, files)
        self._note(files)
        self._events.emit("checkpoint", step=step)

    def latest(self) -> tuple[int, Path] | None:
        """The newest checkpoint that is whole. One that is not is set aside, with a word about what is lost."""
        ledger, key = self._ledger, self._lease.key
        steps = ledger.checkpoint_steps(key)
        while steps:
            step = steps.pop()
            folder = self._root / "scratch" / f"checkpoint-{step}"
            if step == self.resumed_from:
                return step, folder  # it is here: a stage and the engine that it drives may both ask
            try:
                ledger.load_checkpoint(key, step, folder)
                shutil.move(folder / METRICS_FILE, self._metrics)
                self._note(ledger.checkpoint(key, step).files)
            except (Damaged, DamagedRecord, FileNotFoundError) as error:
                shutil.rmtree(folder, ignore_errors=True)
                if own_rank() == 0:
                    ledger.set_checkpoint_aside(key, step)
                instead = (
                    f"going back to the one at step {steps[-1]}" if steps else "there is none before it: starting anew"
                )
                self._log(
                    f"the checkpoint at step {step} is damaged ({error}): set aside under damaged/; {instead}",
                    "warning",
                )
                continue
            self.resumed_from = step
            self._log(f"resuming from the checkpoint at step {step}")
            return step, folder
        return None

    def _note(self, files: Sequence[FileEntry]) -> None:
        self.stored = {(entry.size, entry.sha256): entry.object for entry in files}

    def _log(self, message: str, level: str = "info") -> None:
        self._events.emit("log", level=level, message=message)
