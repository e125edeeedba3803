"""Checkpoints of a model that is spread over processes: each writes its pieces, any other number of processes reads
them.

The files are safetensors with the place of each piece (PyTorch's distributed checkpoint, no pickle), beside
`state.json`, which holds what the trainer and its backend need besides tensors.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from stages.core.context import Context
from stages.lib.training.parallel_dims import ParallelDims

STATE = "state.json"


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


def read_tensors(state: Mapping[str, Tensor], folder: Path, dims: ParallelDims | None = None) -> None:
    """Fill a state from a checkpoint of any number of processes.

    dims: all these processes read together; None: each by itself.
    """
    load(
        dict(state),
        storage_reader=HuggingFaceStorageReader(path=str(folder)),
        no_dist=dims is None or dims.world_size == 1,
        process_group=None if dims is None else dims.checkpoint_group,
    )


class AsyncCheckpointer:
    """Writes and uploads checkpoints beside the training, one at a time."""

    def __init__(self, ctx: Context[Any], dims: ParallelDims) -> None:
        self._ctx, self._dims = ctx, dims
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[Path], Callable[[], None]]) -> None:
        """Copy the state, then write and upload it in the background. Waits for the checkpoint before this one.

        state: JSON values. write: writes the tensors into a folder, as `write_tensors` does. Raises what the checkpoint
        before failed with.
        """
        self.wait()
        folder = Path(self._ctx.scratch) / f"save-{step}"
        folder.mkdir()
        if self._dims.rank == 0:
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
        wait_for_files = write(folder)
        self._thread = threading.Thread(target=self._publish, args=(step, folder, wait_for_files), daemon=True)
        self._thread.start()

    def _publish(self, step: int, folder: Path, wait_for_files: Callable[[], None]) -> None:
        try:
            wait_for_files()
            parts = self._dims.gather_to_first(self._ctx.checkpoints.upload(step, folder))
            if self._dims.rank == 0:
                self._ctx.checkpoints.commit(step, [entry for part in parts for entry in part])
            shutil.rmtree(folder)
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait until the last checkpoint is published. Raises what it failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def latest(self) -> tuple[dict[str, Any], Path] | None:
        """State and folder of the newest checkpoint, if there is one."""
        newest = self._ctx.checkpoints.latest()
        if newest is None:
            return None
        return json.loads((newest[1] / STATE).read_text(encoding="utf-8")), newest[1]
