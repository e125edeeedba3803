"""The processes that train one model together: who they are, how they share weights, batches and checkpoints.

torchrun starts them and names them in the environment; without it there is one process and everything here steps aside. Data
parallel with sharded weights, gradients and moments (FSDP2), optionally times tensor parallel (`tensor_parallel`). A step is the
same whatever their number: the global batch is cut into equal parts, and dropout belongs to a sequence, not to a process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from stages.core.contracts import ConfigError
from stages.modeling.decoder import MoxinLM
from stages.pretrain.spec import PretrainConfig

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others in one exchange: longer than any checkpoint's upload, shorter than a wasted night."""
COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROWS = ("o_proj", "down_proj")
"""Matrices that tensor parallelism cuts by their outputs and by their inputs (Megatron-LM, arXiv 1909.08053)."""


@dataclass(frozen=True)
class World:
    """This process among the others."""

    device: torch.device
    rank: int = 0
    size: int = 1
    tensor: int = 1
    mesh: DeviceMesh | None = None
    side: Any = None
    """A second group, for checkpoints alone: they are written beside the training, and must not mix with its messages."""

    @property
    def data_size(self) -> int:
        """Into how many parts a batch is cut."""
        return self.size // self.tensor

    @property
    def data_rank(self) -> int:
        """Which part is this process's: tensor ranks are neighbours."""
        return self.rank // self.tensor

    def share(self, numbers: np.ndarray) -> np.ndarray:
        """This process's part of a global batch."""
        return np.split(numbers, self.data_size)[self.data_rank]

    def sums(self, *values: float) -> list[float]:
        """Each value summed over the parts of the batch."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(v) / self.tensor for v in total]

    def gathered(self, value: Any) -> list[Any]:
        """The value of every process, on the first; [] on the others."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.gather_object(value, found if self.rank == 0 else None, group=self.side)
        return found if self.rank == 0 else []

    def lost(self, error: RuntimeError) -> bool:
        """Whether an error says that another process is gone: gloo and NCCL have no type for it."""
        return self.size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "peer" in str(error))

    def leave(self) -> None:
        """End the exchange with the others."""
        if self.size > 1:
            dist.destroy_process_group()


def join(config: PretrainConfig, node: str, device: torch.device) -> World:
    """Meet the other processes. Raises ConfigError when their number does not fit the configuration."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size % config.tensor_parallel:
        raise ConfigError(f"{node}.tensor_parallel = {config.tensor_parallel} does not divide the {size} processes")
    parts = size // config.tensor_parallel
    if config.batch_windows % parts:
        raise ConfigError(f"{node}.batch_windows = {config.batch_windows} cannot be shared evenly by {parts} parts: change either")
    if size == 1:
        return World(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    mesh = init_device_mesh(device.type, (parts, config.tensor_parallel), mesh_dim_names=("data", "tensor"))
    return World(device, rank, size, config.tensor_parallel, mesh, dist.new_group(backend="gloo", timeout=TIMEOUT))


def shard(model: MoxinLM, world: World) -> None:
    """Cut the model's weights over the processes, in place."""
    if world.mesh is None:
        return
    if world.tensor > 1:
        mesh = world.mesh["tensor"]
        model.tensor_group = mesh
        for name, module in model.named_modules():
            last = name.rpartition(".")[2]
            placement = Shard(0) if last in COLUMNS else Shard(1) if last in ROWS else Replicate()
            for key, parameter in list(module.named_parameters(recurse=False)):
                cut = distribute_tensor(parameter.detach(), mesh, [placement])
                module.register_parameter(key, torch.nn.Parameter(cut))
    if world.data_size > 1:
        for block in model.model.layers:
            fully_shard(block, mesh=world.mesh["data"])
        fully_shard(model, mesh=world.mesh["data"])
        register_fsdp_forward_method(model, "loss_sum")


def hold_back(model: MoxinLM, last: bool) -> None:
    """Exchange gradients at the last micro-batch of a step only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_is_last_backward(last)


def rest(model: MoxinLM) -> None:
    """Put the weights back into their parts after a forward pass that no backward pass followed (FSDP keeps the outermost)."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def state_of(model: MoxinLM, optimizer: torch.optim.Optimizer, world: World) -> dict[str, Tensor]:
    """Weights and moments by name, each as its process holds it. The moments are made when there are none yet."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state[f"model.{name}"] = parameter.detach()
        own = optimizer.state[parameter]
        if not own:
            own["step"] = torch.zeros((), device=parameter.device if parameter.is_cuda else "cpu")
            own["exp_avg"], own["exp_avg_sq"] = torch.zeros_like(parameter.detach()), torch.zeros_like(parameter.detach())
        state |= {f"optimizer.{name}.{key}": own[key] for key in ("exp_avg", "exp_avg_sq")}
    return state


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


def read(state: Mapping[str, Tensor], folder: Path, world: World) -> None:
    """Fill a state from a checkpoint of any number of processes."""
    load(dict(state), storage_reader=HuggingFaceStorageReader(path=str(folder)), no_dist=world.size == 1, process_group=world.side)
