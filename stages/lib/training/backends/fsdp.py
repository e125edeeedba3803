"""Engine `torch`: FSDP2, optionally times tensor parallel through DTensor; autocast with PyTorch's loss scaling in half
precision.

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
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate

from stages.lib.modeling.weights import materialize
from stages.lib.training.backends.base import INITIAL_SCALE, Accepts, HeldTensors, Trainable, Update
from stages.lib.training.backends.tensor_parallel import apply_tensor_parallel
from stages.lib.training.checkpointer import Read, write_tensors
from stages.lib.training.config import BackendConfig
from stages.lib.training.gradient_threads import GradientThreads
from stages.lib.training.optimizer import (
    MOMENTS,
    PRECISION,
    WEIGHT,
    make_optimizer,
    moments_of,
    set_learning_rate,
    stored_name,
)
from stages.lib.training.parallel_dims import ParallelDims


def shard(trainable: Trainable, dims: ParallelDims, policy: MixedPrecisionPolicy, zero: int = 3) -> None:
    """Cut the model's weights over the processes, in place. zero: below 3 gathered weights stay whole until the step's
    end.
    """
    if dims.world_size == 1:
        return
    model: Any = trainable.module
    sizes = (dims.data_parallel_size, dims.model_parallel_size)
    mesh = init_device_mesh(dims.device.type, sizes, mesh_dim_names=("data", "tensor"))
    if dims.model_parallel_size > 1:
        model.tensor_group = mesh["tensor"]
        apply_tensor_parallel(model, mesh["tensor"])
    if dims.data_parallel_size > 1:
        reshard = None if zero == 3 else False  # None: all but the outermost
        for block in trainable.blocks:
            fully_shard(block, mesh=mesh["data"], mp_policy=policy, reshard_after_forward=reshard)
        fully_shard(model, mesh=mesh["data"], mp_policy=policy, reshard_after_forward=reshard)
        for name in trainable.methods:
            register_fsdp_forward_method(model, name)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def here(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class TorchBackend:
    """`Backend` by PyTorch alone."""

    def __init__(
        self,
        trainable: Trainable,
        config: BackendConfig,
        dims: ParallelDims,
        gradient_threads: int = 1,
        cast_weights: bool = False,
    ) -> None:
        """gradient_threads: of a single process on a CPU, whose batches can be split.

        cast_weights: several processes gather weights in the configuration's precision, and compute in it throughout;
        else they gather float32, and autocast casts what goes into a product.
        """
        self._zero = config.parallel.zero_of("torch")
        self.model, self._trainable, self._config, self._dims = trainable.module, trainable, config, dims
        dtype = PRECISION[config.precision]
        casts = cast_weights and dtype != torch.float32 and dims.data_parallel_size > 1
        policy = (
            MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if casts else MixedPrecisionPolicy()
        )
        shard(trainable, dims, policy, self._zero)
        materialize(self.model, dims.device, trainable.weights)
        self._autocast = None if casts or dtype == torch.float32 else dtype
        self.model.train()
        alone = dims.world_size == 1 and dims.device.type == "cpu"
        self._threads = GradientThreads(gradient_threads) if alone and gradient_threads > 1 else None
        self._optimizer = make_optimizer(self.model, config)
        self._scaler = torch.amp.GradScaler(
            dims.device.type, init_scale=INITIAL_SCALE, enabled=config.precision == "fp16"
        )

    def _loss(self, batch: Any) -> Tensor:
        with torch.autocast(self._dims.device.type, self._autocast, enabled=self._autocast is not None):
            return self._trainable.loss_sum(batch)

    def step(self, batches: Sequence[Any], learning_rate: float, predicted: float, accepts: Accepts) -> Update:
        set_learning_rate(self._optimizer, learning_rate)
        # FSDP takes the mean of the gradients over the parts of the batch
        total = self._accumulate_gradients(batches, self._dims.data_parallel_size / predicted)
        self._scaler.unscale_(self._optimizer)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(trained, self._config.grad_clip)))
        overflow = self._scaler.is_enabled() and not math.isfinite(norm) and self._scaler.get_scale() > 1.0
        update = Update(float(total), norm, overflow)
        if accepts(update):
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return update

    def _accumulate_gradients(self, batches: Sequence[Any], scale: float) -> Tensor:
        """Add scale x the gradients of all batches; returns the sum of their losses."""
        if self._threads is not None:
            pieces = [piece for batch in batches for piece in self._pieces(batch)]
            return self._threads.gradients(self._loss, list(self.model.parameters()), pieces, scale)
        total = torch.zeros((), device=self._dims.device)
        for batch in batches:
            self._set_exchange(batch is batches[-1])
            loss = self._loss(batch)
            self._scaler.scale(loss * scale).backward()
            total += loss.detach()
        return total

    def _pieces(self, batch: Any) -> list[Any]:
        """What the threads take of a batch at a time: together no more than a micro-batch, if that has enough
        sequences.
        """
        assert self._threads is not None
        return batch.split(max(1, self._config.micro_batch_size // self._threads.threads))

    def _set_exchange(self, last: bool) -> None:
        """What the next backward pass does, by the stage of ZeRO. last: of this step.

        1: gradients add up whole and are exchanged once. 1, 2: weights are gathered once a step.
        """
        if isinstance(self.model, FSDPModule):
            exchanged = last or self._zero > 1
            self.model.set_requires_gradient_sync(exchanged)
            self.model.set_is_last_backward(exchanged)
            self.model.set_reshard_after_backward(last or self._zero == 3)

    def held(self) -> HeldTensors:
        """FSDP cuts all over the parts of the batch. What tensor parallelism leaves whole lies in neighbours, too."""
        resting, shared = self._tensors(), list[Tensor]()
        for name, parameter in self.model.named_parameters():
            placed = (
                dict(zip(parameter.device_mesh.mesh_dim_names or (), parameter.placements, strict=False))
                if isinstance(parameter, DTensor)
                else {}
            )
            if isinstance(placed.get("tensor"), Replicate):
                shared += [resting[stored_name(name, key)] for key in (WEIGHT, *MOMENTS)]
        neighbours = self._dims.model_parallel_size
        first = self._dims.rank // neighbours * neighbours
        return HeldTensors([here(tensor) for tensor in resting.values()], [here(tensor) for tensor in shared], first)

    @torch.no_grad()
    def evaluate(self, batch: Any) -> float:
        self.model.eval()
        if self._threads is not None:
            return float(self._threads.total(self._loss, self._pieces(batch)))
        return float(self._loss(batch))

    def finish_evaluation(self) -> None:
        """Cut the weights again: no backward pass followed (FSDP keeps the outermost whole, and, where one failed, a
        block).
        """
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        if self._dims.device.type == "cuda":
            # a forward pass that failed leaves memory, and streams that nobody waits for
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def extra_state(self) -> dict[str, Any]:
        return {"scaler": self._scaler.state_dict(), "optimizer_steps": self._optimizer_steps()}

    def _optimizer_steps(self) -> dict[str, int]:
        """AdamW's count of steps by name, of parameters that had no gradient in some step: fewer than the trainer's."""
        counts = {
            name: int(moments_of(self._optimizer, parameter)["step"])
            for name, parameter in self.model.named_parameters()
        }
        return {name: count for name, count in counts.items() if count < max(counts.values())}

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and moments by name, each as this process holds it."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            tensors[stored_name(name, WEIGHT)] = parameter.detach()
            moments = moments_of(self._optimizer, parameter)
            tensors |= {stored_name(name, key): moments[key] for key in MOMENTS}
        return tensors

    def save(self, folder: Path) -> Callable[[], None]:
        return write_tensors(self._tensors(), folder, self._dims)

    def load(self, read: Read, state: Mapping[str, Any], updates: int) -> None:
        read([self._tensors()])
        self._scaler.load_state_dict(state["scaler"])
        fewer = state.get("optimizer_steps", {})  # not in a checkpoint of the other backend
        for name, parameter in self.model.named_parameters():
            moments_of(self._optimizer, parameter)["step"].fill_(fewer.get(name, updates))

    def load_moments(self, read: Read, updates: int) -> None:
        read([{name: tensor for name, tensor in self._tensors().items() if name.startswith("optimizer.")}])
        for parameter in self.model.parameters():
            moments_of(self._optimizer, parameter)["step"].fill_(updates)

    def export(self, name: str, writer: int, kept: str = WEIGHT) -> Tensor | None:
        parameter = self.model.get_parameter(name)
        value = full_tensor(parameter.detach() if kept == WEIGHT else moments_of(self._optimizer, parameter)[kept])
        return value.cpu() if self._dims.rank == writer else None
