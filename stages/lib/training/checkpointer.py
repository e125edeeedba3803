"""Checkpoints of a model that is spread over processes: each writes its pieces, any other number of processes reads
what it needs of them.

The files are safetensors with the place of each piece (PyTorch's distributed checkpoint, no pickle), beside
`state.json`, which holds what the trainer and its backend need besides tensors.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from stages.core.artifacts import FileEntry
from stages.core.context import Context
from stages.core.errors import InputError, Preempted
from stages.core.reading import open_file, sense
from stages.core.store_errors import Damaged
from stages.lib.training.parallel_dims import ParallelDims
from stages.lib.training.stored_tensors import Part, Piece, StoredTensors, read_headers

STATE = "state.json"

Read = Callable[[Iterable[Mapping[str, Tensor | Part]]], None]
"""Fills tensors by name, one mapping after the other: what a generator does between two of them happens after the first
is filled. Every process has to call it as often. Raises on all of them where one finds damage.
"""


def write_tensors(state: Mapping[str, Tensor], folder: Path, dims: ParallelDims) -> Callable[[], None]:
    """Write this process's part of a state.

    The state is copied before this returns; call what it returns to wait for the files.
    """
    writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    if dims.world_size == 1:
        save(dict(state), storage_writer=writer, no_dist=True)
        return lambda: None
    future = async_save(dict(state), storage_writer=writer, process_group=dims.checkpoint_group)
    return lambda: (future.result(), None)[1]  # type: ignore[union-attr]


class NotWhole(Exception):
    """Some process found a checkpoint damaged; all raise this."""


def shared_reader(dims: ParallelDims, files: Sequence[FileEntry], headers: Sequence[Sequence[Piece]]) -> Read:
    """Reads tensors of these files into all processes. Raises NotWhole."""

    def read(batches: Iterable[Mapping[str, Tensor | Part]]) -> None:
        problem = ""
        try:
            tensors = StoredTensors(files, headers)
            for targets in batches:
                tensors.read(targets)
        except Damaged as error:
            problem = str(error)
        if problem := dims.first_problem(problem):
            raise NotWhole(problem)

    return read


class AsyncCheckpointer:
    """Writes and uploads checkpoints beside the training, one at a time."""

    def __init__(self, ctx: Context[Any], dims: ParallelDims) -> None:
        self._ctx, self._dims = ctx, dims
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    # --- saving ---------------------------------------------------------------------------------------------------

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[Path], Callable[[], None]]) -> None:
        """Copy the state, then write and upload it in the background. Waits for the checkpoint before this one.

        state: JSON values. write: writes the tensors into a folder, as `write_tensors` does. Raises what ended the
        exchange with the other processes; a checkpoint that cannot be written or stored is left out, with a warning.
        """
        begun = time.perf_counter()
        self.wait()
        folder = Path(self._ctx.scratch) / f"save-{step}"

        def written() -> None:
            files()
            self._ctx.checkpoints.note(disk_seconds=time.perf_counter() - begun)
            if self._dims.rank == 0:
                (folder / STATE).write_text(json.dumps(state), encoding="utf-8")

        try:
            folder.mkdir()
            files = write(folder)
        except (OSError, CheckpointException) as error:  # of a process alone: its files are written here
            if self._dims.world_size > 1:
                raise
            files = _failed(error)
        self._thread = threading.Thread(target=self._publish, args=(step, folder, written), daemon=True)
        self._thread.start()
        self._ctx.checkpoints.note(pause_seconds=time.perf_counter() - begun)
        if self._ctx.rehearses_stop:
            self.wait()

    def _publish(self, step: int, folder: Path, written: Callable[[], None]) -> None:
        try:
            if self._agree(step, written):
                parts = self._dims.gather_to_first(self._ctx.checkpoints.upload(step, folder))
                if self._dims.rank == 0:
                    self._ctx.checkpoints.commit(step, [entry for part in parts for entry in part])
        except BaseException as error:
            self._error = error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _agree(self, step: int, written: Callable[[], None]) -> bool:
        """Whether all processes have their files on disk."""
        problem = ""
        try:
            written()
        except OSError as error:
            problem = str(error)
        except CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            if not isinstance(first, OSError):
                raise
            problem = str(first)
        if problem := self._dims.first_problem(problem):
            self._ctx.log(f"no checkpoint at step {step}: {problem}; it is tried again at the next", "warning")
        return not problem

    def wait(self) -> None:
        """Wait until the last checkpoint is published. Raises what it failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    # --- resuming -------------------------------------------------------------------------------------------------

    def go_back(self, step: int) -> bool:
        """Have `resume` load one at or before a step: those after it go. False: there is none, and all are gone."""
        return self._dims.from_first(lambda: self._ctx.checkpoints.go_back(step))

    def resume(self, load: Callable[[Mapping[str, Any], Read], None]) -> bool:
        """Load the newest checkpoint that is whole, if there is one. load: is given `state` of `save` and what reads
        its tensors; called again, with the checkpoint before, when these are damaged.

        The first process looks for it and tells the others; each reads its own part.
        """
        begun = False
        while True:
            newest = self._dims.from_first(self._newest)
            if newest is None and begun:  # the model has parts of what is damaged
                raise Preempted(f"{self._ctx.node}: no checkpoint is whole: the next attempt starts anew")
            if newest is None:
                return False
            step, state, files, headers = newest
            begun, started = True, time.perf_counter()
            try:
                load(state, shared_reader(self._dims, files, headers))
            except NotWhole as error:
                if self._dims.rank == 0:
                    self._ctx.checkpoints.set_aside(step, error)
                continue
            self._ctx.checkpoints.note(
                read_bytes=sum(entry.size for entry in files), read_seconds=time.perf_counter() - started
            )
            return True

    def _newest(self) -> tuple[int, dict[str, Any], list[FileEntry], list[tuple[Piece, ...]]] | None:
        """Step, state, files of tensors and their headers of the newest checkpoint whose headers can be read."""
        while (newest := self._ctx.checkpoints.newest()) is not None:
            step, entries = newest
            files = [entry for entry in entries if entry.path != STATE]
            try:
                return step, _state(entries), files, read_headers(files)
            except Damaged as error:
                self._ctx.checkpoints.set_aside(step, error)
        return None


def _failed(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def _state(entries: Sequence[FileEntry]) -> dict[str, Any]:
    """Raises Damaged."""
    for entry in entries:
        if entry.path == STATE:
            with open_file(entry, verified=True) as stream, sense(entry, ValueError):
                return json.loads(stream.read())
    raise InputError(f"a checkpoint has no {STATE}: something else than this trainer wrote it")
