"""Checkpoints of a running attempt: saved and found through the ledger, with the metric rows that belong to each."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core.artifacts import FileEntry
from stages.core.checkpoints import Retention
from stages.core.errors import InfraError
from stages.core.events import Events, own_rank
from stages.core.leases import LeaseLost
from stages.core.ledger import Ledger
from stages.core.messages import StageRequest
from stages.core.metric_rows import METRICS_FILE, MetricRows, is_rows
from stages.core.records import DamagedRecord
from stages.core.store_errors import Damaged

_LEFT_OUT = "left_out"
"""In the place of a part of a checkpoint that could not be stored: why."""


class RuntimeCheckpoints:
    """Checkpoints of the request's key; the metric rows up to its step travel with each one."""

    def __init__(self, request: StageRequest, ledger: Ledger, events: Events, root: Path) -> None:
        self._lease, self._ledger, self._events, self._root = request.lease, ledger, events, root
        self._rows = MetricRows(root)
        self._fetched: tuple[int, Path] | None = None
        self.most: dict[str, float] = {}
        """What `note` was told."""
        self._retention = Retention()
        self.resumed_from: int | None = None
        """Step of the checkpoint that this attempt began from."""
        self._at: int | None = None
        """Step of the one whose rows are here."""
        self._back = False
        """Whether the attempt went back to it, and did not begin from it."""
        self.saved: int | None = None
        """Step of the newest checkpoint that this attempt has published."""
        self.stored: dict[tuple[int, str], str] = {}
        """`{(size, SHA-256): object}` of the files of the newest checkpoint of this attempt, or that it began from: the
        result may hold the same.
        """

    # --- saving ---------------------------------------------------------------------------------------------------

    def save(self, step: int, directory: Path) -> None:
        self.commit(step, self.upload(step, directory))

    def upload(self, step: int, directory: Path) -> list[dict[str, Any]]:
        """Trouble with the store is no reason to end a training: the checkpoint is then left out, and `commit` is
        told.
        """
        begun = time.perf_counter()
        try:
            files = self._ledger.upload_checkpoint(self._lease, step, Path(directory))
        except (InfraError, Damaged) as error:
            if isinstance(error, LeaseLost):
                raise
            return [{_LEFT_OUT: str(error)}]
        self.note(bytes=sum(entry.size for entry in files), store_seconds=time.perf_counter() - begun)
        return [entry.model_dump() for entry in files]

    def commit(self, step: int, parts: Sequence[dict[str, Any]]) -> None:
        try:
            if left_out := [part[_LEFT_OUT] for part in parts if _LEFT_OUT in part]:
                raise InfraError(left_out[0])
            files = (*(FileEntry.model_validate(part) for part in parts), *self._upload_rows(step))
            self._ledger.commit_checkpoint(self._lease, step, files, self._retention)
        except (InfraError, Damaged) as error:
            if isinstance(error, LeaseLost):
                raise
            self._log(f"no checkpoint at step {step}: {error}; it is tried again at the next", "warning")
            return
        self._note(files)
        self.saved = step
        self._events.emit("checkpoint", step=step)

    def _upload_rows(self, step: int) -> tuple[FileEntry, ...]:
        """The rows up to a step: whole segments are stored once, what follows them with each checkpoint."""
        with tempfile.TemporaryDirectory(dir=self._root) as folder:
            self._rows.take(step)
            while (segment := self._rows.full_segment()) is not None:
                path = Path(folder) / "segment"
                path.write_bytes(segment.data)
                self._rows.stored(self._ledger.upload_rows(self._lease, segment.number, path, segment.name))
                path.unlink()
            (Path(folder) / METRICS_FILE).write_bytes(self._rows.rest())
            return (*self._rows.segments, *self._ledger.upload_checkpoint(self._lease, step, Path(folder)))

    # --- finding --------------------------------------------------------------------------------------------------

    def newest(self) -> tuple[int, list[FileEntry]] | None:
        """Its metric rows are fetched, nothing else is. One whose marker or rows are damaged is set aside."""
        steps = self._ledger.resumable_steps(self._lease.key)
        while steps:
            step = steps.pop()
            try:
                files = self._ledger.checkpoint(self._lease.key, step).files
                if step != self._at:
                    self._restore_rows(files)
            except (Damaged, DamagedRecord, FileNotFoundError) as error:
                self._set_aside(step, error, steps)
                continue
            if step != self._at:
                self._note(files)
                self._at = step
                if self._back:
                    self._log(f"going back to the checkpoint at step {step}", "warning")
                else:
                    self.resumed_from = step
                    self._log(f"resuming from the checkpoint at step {step}")
            return step, [entry for entry in files if not is_rows(entry.path)]
        return None

    def latest(self) -> tuple[int, Path] | None:
        """The newest checkpoint that is whole, fetched. One that is not is set aside, with a word about what is
        lost.
        """
        while (newest := self.newest()) is not None:
            step, files = newest
            if self._fetched is not None and self._fetched[0] == step:
                return self._fetched  # it is here: a stage and the engine that it drives may both ask
            folder, begun = self._root / "scratch" / f"checkpoint-{step}", time.perf_counter()
            try:
                self._ledger.load_checkpoint(files, folder)
            except Damaged as error:
                shutil.rmtree(folder, ignore_errors=True)
                self.set_aside(step, error)
                continue
            self.note(read_bytes=sum(entry.size for entry in files), read_seconds=time.perf_counter() - begun)
            self._fetched = step, folder
            return self._fetched
        return None

    def retain(self, last: int, every: int, behind: int) -> None:
        self._retention = Retention(last, every, behind)

    def note(self, **most: float) -> None:
        for name, value in most.items():
            self.most[name] = max(round(value, 6), self.most.get(name, 0.0))

    def go_back(self, step: int) -> bool:
        left = self._ledger.drop_checkpoints_after(self._lease, step)
        self._at, self._back, self._fetched = None, True, None
        if not left:
            self.stored = {}
            self._rows.forget()
        return left

    def set_aside(self, step: int, why: object) -> None:
        steps = self._ledger.checkpoint_steps(self._lease.key)
        self._set_aside(step, why, [other for other in steps if other < step])

    def _set_aside(self, step: int, why: object, before: Sequence[int]) -> None:
        if own_rank() == 0:
            self._ledger.set_checkpoint_aside(self._lease.key, step)
        if step == self._at:
            self._at = None
            self.resumed_from = self.resumed_from if self._back else None
            self.stored = {}
            self._rows.forget()
        instead = f"going back to the one at step {before[-1]}" if before else "there is none before it: starting anew"
        self._log(f"the checkpoint at step {step} is damaged ({why}): set aside under damaged/; {instead}", "warning")

    def _restore_rows(self, files: Sequence[FileEntry]) -> None:
        with tempfile.TemporaryDirectory(dir=self._root) as folder:
            entries = sorted((entry for entry in files if is_rows(entry.path)), key=lambda entry: entry.path)
            self._ledger.load_checkpoint(entries, Path(folder))
            self._rows.restore(entries, Path(folder))

    def _note(self, files: Sequence[FileEntry]) -> None:
        self.stored = {(entry.size, entry.sha256): entry.object for entry in files}

    def _log(self, message: str, level: str = "info") -> None:
        self._events.emit("log", level=level, message=message)
