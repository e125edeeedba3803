"""Engine `torch`: FSDP2, optionally times tensor parallel through DTensor; autocast with PyTorch's loss scaling in half precision.

Data parallel with sharded weights, gradients and moments. With one process everything here steps aside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from stages.modeling.decoder import MoxinLM
from stages.modeling.team import Team
from stages.pretrain.checkpoint import read, write
from stages.pretrain.engine import INITIAL_SCALE, MOMENTS, Batch, Update, make_optimizer, moments_of, noise_of
from stages.pretrain.spec import PretrainConfig
from stages.pretrain.world import World

COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROWS = ("o_proj", "down_proj")
"""Matrices that tensor parallelism cuts by their outputs and by their inputs (Megatron-LM, arXiv 1909.08053)."""
PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def shard(model: MoxinLM, world: World) -> None:
    """Cut the model's weights over the processes, in place."""
    if world.size == 1:
        return
    mesh = init_device_mesh(world.device.type, (world.data_size, world.together), mesh_dim_names=("data", "tensor"))
    if world.together > 1:
        model.tensor_group = mesh["tensor"]
        for name, module in model.named_modules():
            last = name.rpartition(".")[2]
            placement = Shard(0) if last in COLUMNS else Shard(1) if last in ROWS else Replicate()
            for key, parameter in list(module.named_parameters(recurse=False)):
                cut = distribute_tensor(parameter.detach(), mesh["tensor"], [placement])
                module.register_parameter(key, torch.nn.Parameter(cut))
    if world.data_size > 1:
        for block in model.model.layers:
            fully_shard(block, mesh=mesh["data"])
        fully_shard(model, mesh=mesh["data"])
        register_fsdp_forward_method(model, "loss_sum")


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class TorchEngine:
    """`Engine` by PyTorch alone."""

    def __init__(self, model: MoxinLM, config: PretrainConfig, world: World) -> None:
        self.model, self._config, self._world = model.to(world.device), config, world
        if config.compile:
            self.model.compile_blocks()
        shard(self.model, world)
        self.model.train()
        alone = world.size == 1 and world.device.type == "cpu"
        self._team = Team(config.threads) if alone and config.threads > 1 else None
        self._optimizer = make_optimizer(self.model, config)
        self._scaler = torch.amp.GradScaler(world.device.type, init_scale=INITIAL_SCALE, enabled=config.precision == "fp16")

    def _loss(self, batch: Batch) -> Tensor:
        dtype = PRECISION[self._config.precision]
        with torch.autocast(self._world.device.type, dtype, enabled=dtype != torch.float32):
            loss, _ = self.model.loss_sum(batch.ids, batch.documents, noise_of(self._config, batch.sequences))
        return loss

    def step(self, batches: Sequence[Batch], rate: float, predicted: float) -> Update:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        total = self._gradients(batches, self._world.data_size / predicted)  # FSDP takes the mean over the parts
        self._scaler.unscale_(self._optimizer)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.grad_clip)))
        overflow = self._scaler.is_enabled() and not math.isfinite(norm) and self._scaler.get_scale() > 1.0
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return Update(float(total), norm, overflow)

    def _gradients(self, batches: Sequence[Batch], scale: float) -> Tensor:
        """Add scale x the gradients of all batches; returns the sum of their losses."""
        if self._team is not None:
            pieces = [piece for batch in batches for piece in self._pieces(batch)]
            return self._team.gradients(self._loss, list(self.model.parameters()), pieces, scale)
        total = torch.zeros((), device=self._world.device)
        for batch in batches:
            self._hold_back(batch is batches[-1])
            loss = self._loss(batch)
            self._scaler.scale(loss * scale).backward()
            total += loss.detach()
        return total

    def _pieces(self, batch: Batch) -> list[Batch]:
        """What the threads of a team take of a batch at a time: together no more than a micro-batch, if that has enough windows."""
        return batch.split(max(1, self._config.micro_batch // self._config.threads))

    def _hold_back(self, last: bool) -> None:
        """Exchange gradients at the last micro-batch of a step only."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
            self.model.set_is_last_backward(last)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> float:
        self.model.eval()
        if self._team is not None:
            return float(self._team.total(self._loss, self._pieces(batch)))
        return float(self._loss(batch))

    def rest(self) -> None:
        """Put the weights back into their parts: no backward pass followed (FSDP keeps the outermost)."""
        self.model.train()
        if isinstance(self.model, FSDPModule):
            self.model.reshard()

    def state(self) -> dict[str, Any]:
        return {"scaler": self._scaler.state_dict()}

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and moments by name, each as this process holds it."""
        state: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            state[f"model.{name}"] = parameter.detach()
            own = moments_of(self._optimizer, parameter)
            state |= {f"optimizer.{name}.{key}": own[key] for key in MOMENTS}
        return state

    def save(self, folder: Path) -> Callable[[], None]:
        return write(self._tensors(), folder, self._world)

    def load(self, folder: Path, state: Mapping[str, Any], updates: int) -> None:
        self._scaler.load_state_dict(state["scaler"])
        read(self._tensors(), folder, self._world)
        for own in self._optimizer.state.values():
            own["step"].fill_(updates)

    def export(self) -> Mapping[str, Tensor]:
        whole_ones = ((name, whole(tensor.detach()).cpu()) for name, tensor in self.model.state_dict().items())
        return {name: tensor for name, tensor in whole_ones if self._world.rank == 0}
