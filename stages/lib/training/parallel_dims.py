"""The processes that train one model together: how a model and its batches are laid out over them, and what they tell
each other beside gradients.

torchrun starts them and names them in the environment. A step is the same whatever their number: the global batch is
cut into equal parts, and dropout belongs to a sequence, not to a process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from stages.core.context import Context
from stages.core.errors import ConfigError, Preempted
from stages.lib.training.meeting import LOST, current, meeting

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others in one exchange: longer than any checkpoint's upload, shorter than a wasted
night.
"""


@dataclass(frozen=True)
class ParallelDims:
    """This process's place among the others."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    model_parallel_size: int = 1
    """Neighbouring ranks that work on one part of the batch: they share matrices (tensor) or blocks (pipeline)."""
    checkpoint_group: Any = None
    """A second process group, for checkpoints alone: they are written beside the training, and must not mix with its
    messages.
    """

    @property
    def data_parallel_size(self) -> int:
        """Into how many parts a global batch is cut."""
        return self.world_size // self.model_parallel_size

    @property
    def data_parallel_rank(self) -> int:
        """Which of these parts this process works on."""
        return self.rank // self.model_parallel_size

    def local_part(self, numbers: np.ndarray) -> np.ndarray:
        """This process's part of a global batch: one of equal, consecutive pieces."""
        return np.split(numbers, self.data_parallel_size)[self.data_parallel_rank]

    def all_reduce(self, *values: float) -> list[float]:
        """Each value summed over all processes, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(v) for v in total]

    def gather_numbers(self, *values: int) -> list[list[int]]:
        """Whole numbers of every process, on all of them, by rank. Beside a checkpoint that is written, too."""
        if self.world_size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.int64)
        every = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(every, mine)
        return [row.tolist() for row in every]

    def data_parallel_sum(self, *values: float) -> list[float]:
        """Each value summed over the parts of the batch: processes that share a part have the same one."""
        return [value / self.model_parallel_size for value in self.all_reduce(*values)]

    def gather_to_first(self, value: Any) -> list[Any]:
        """The value of every process, on rank 0; [] on the others."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.gather_object(value, gathered if self.rank == 0 else None, group=self.checkpoint_group)
        return gathered if self.rank == 0 else []

    def all_gather(self, value: Any) -> list[Any]:
        """The value of every process, on all of them."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=self.checkpoint_group)
        return gathered

    def first_problem(self, problem: str) -> str:
        """What the first process that has a problem says of it, on all of them; "" when none has one."""
        return next(filter(None, self.all_gather(problem)), "")

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on every process."""
        if self.world_size == 1:
            return make()
        values = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(values, src=0, group=self.checkpoint_group)
        return values[0]  # type: ignore[return-value]

    def is_peer_failure(self, error: RuntimeError) -> bool:
        """Whether an error says that another process is gone: gloo and NCCL have no type for it."""
        return self.world_size > 1 and (
            isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "peer" in str(error)
        )

    def destroy(self) -> None:
        """End the exchange with the others."""
        if dist.is_initialized():
            dist.destroy_process_group()


def world_size() -> int:
    """How many processes torchrun started, over all nodes; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _init_distributed(ctx: Context[Any], device: torch.device, model_parallel_size: int) -> ParallelDims:
    size, rank = world_size(), int(os.environ.get("RANK", "0"))
    if size == 1:
        return ParallelDims(device)
    if device.type == "cuda":
        local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ConfigError(f"resources.{ctx.node}.gpus is more than this machine has: {gpus}")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    backends = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    current().wait(lambda: ctx.stopping)
    current().watch()
    current().store.set_timeout(TIMEOUT)
    dist.init_process_group(backends, store=current().store, rank=rank, world_size=size, timeout=TIMEOUT)
    return ParallelDims(device, rank, size, model_parallel_size, dist.new_group(backend="gloo", timeout=TIMEOUT))


@contextlib.contextmanager
def distributed(ctx: Context[Any], device: torch.device, model_parallel_size: int = 1) -> Iterator[ParallelDims]:
    """Meet the other processes, and leave them at the end. device: of this kind; each process has a GPU of its own.

    model_parallel_size has to divide their number (`validation.require_fitting_processes`). Raises Preempted when
    another process was lost meanwhile.
    """
    with meeting():
        dims = _init_distributed(ctx, device, model_parallel_size)
        try:
            yield dims
        except RuntimeError as error:
            if dims.is_peer_failure(error):
                raise Preempted(LOST) from error
            raise
        finally:
            dims.destroy()
