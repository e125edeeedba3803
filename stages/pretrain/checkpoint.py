"""Checkpoints of a model that is spread over processes: each writes its pieces, any other number of processes reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from stages.pretrain.world import World


def write(state: Mapping[str, Tensor], folder: Path, world: World) -> Callable[[], None]:
    """Write this process's part as safetensors with the place of each piece (PyTorch's distributed checkpoint, no pickle).

    The state is copied before this returns; call what it returns to wait for the files.
    """
    writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    if world.size == 1:
        save(dict(state), storage_writer=writer, no_dist=True)
        return lambda: None
    future = async_save(dict(state), storage_writer=writer, process_group=world.side)
    return lambda: (future.result(), None)[1]  # type: ignore[union-attr]


def read(state: Mapping[str, Tensor], folder: Path, world: World | None = None) -> None:
    """Fill a state from a checkpoint of any number of processes. world: all its processes read together; None: each by itself."""
    alone = world is None or world.size == 1
    load(dict(state), storage_reader=HuggingFaceStorageReader(path=str(folder)), no_dist=alone, process_group=None if world is None else world.side)
