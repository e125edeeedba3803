"""The processes that train one model together: who they are, and what they tell each other beside gradients.

torchrun starts them and names them in the environment. A step is the same whatever their number: the global batch is cut into
equal parts, and dropout belongs to a sequence, not to a process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from stages.core.contracts import ConfigError
from stages.pretrain import rules
from stages.pretrain.spec import PretrainConfig

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others in one exchange: longer than any checkpoint's upload, shorter than a wasted night."""


@dataclass(frozen=True)
class World:
    """This process among the others."""

    device: torch.device
    rank: int = 0
    size: int = 1
    together: int = 1
    """Neighbours that work on one part of the batch: they share matrices or blocks."""
    side: Any = None
    """A second group, for checkpoints alone: they are written beside the training, and must not mix with its messages."""

    @property
    def data_size(self) -> int:
        """Into how many parts a batch is cut."""
        return self.size // self.together

    @property
    def data_rank(self) -> int:
        """Which part is this process's."""
        return self.rank // self.together

    def share(self, numbers: np.ndarray) -> np.ndarray:
        """This process's part of a global batch."""
        return np.split(numbers, self.data_size)[self.data_rank]

    def total(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(v) for v in total]

    def sums(self, *values: float) -> list[float]:
        """Each value summed over the parts of the batch: neighbours have the same one."""
        return [value / self.together for value in self.total(*values)]

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
        if dist.is_initialized():
            dist.destroy_process_group()


def join(config: PretrainConfig, node: str, device: torch.device) -> World:
    """Meet the other processes. Raises ConfigError when their number does not fit the configuration."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    together = config.together
    if size % together:
        key = "tensor_parallel" if together == config.tensor_parallel else "tensor_parallel x colossalai.pipeline"
        raise ConfigError(f"{node}.{key} = {together} does not divide the {size} processes")
    parts = size // together
    if config.batch_windows % parts:
        raise ConfigError(f"{node}.batch_windows = {config.batch_windows} cannot be shared evenly by {parts} parts: change either")
    if config.engine == "colossalai":
        try:
            rules.require_microbatches(config, config.batch_windows // parts)
        except ValueError as error:
            raise ConfigError(f"{node}: {error}") from None
    if size == 1:
        return World(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return World(device, rank, size, together, dist.new_group(backend="gloo", timeout=TIMEOUT))
