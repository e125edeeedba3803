"""Which of the decoder's matrices tensor parallelism cuts, and how (Megatron-LM, arXiv 1909.08053)."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Cut by their outputs."""
ROWS = ("o_proj", "down_proj")
"""Cut by their inputs."""


def apply_tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    """Make every parameter a DTensor over `mesh`, in place: cut, or the same on each process."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        placement = Shard(0) if last in COLUMNS else Shard(1) if last in ROWS else Replicate()
        for key, parameter in list(module.named_parameters(recurse=False)):
            cut = distribute_tensor(parameter.detach(), mesh, [placement])
            module.register_parameter(key, torch.nn.Parameter(cut))
