"""Weights and moments of engine `colossalai` as whole float32 tensors by name, from and to any of its topologies.

A tensor may be cut twice: by tensor parallelism along a dimension, and what is left of it by ZeRO, flat and padded,
over the processes that share the batch. A checkpoint has it whole (in pieces that know their place), so that any other
topology can read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from colossalai.tensor.d_tensor import is_distributed_tensor  # pyright: ignore[reportMissingImports]
from colossalai.tensor.d_tensor.api import get_shard_dim_1d  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.weights import Weights, whole
from stages.lib.training.backends.base import HeldTensors
from stages.lib.training.checkpointer import Read, write_tensors
from stages.lib.training.optimizer import MOMENTS, WEIGHT, moments_of, stored_name
from stages.lib.training.parallel_dims import ParallelDims
from stages.lib.training.stored_tensors import Part

SCALER = ("_scale", "_growth_step", "_hysteresis_step")
"""What a step changes in Colossal-AI's DynamicGradScaler. Its own state_dict has the first alone."""
KEPT = (WEIGHT, *MOMENTS)
"""What there is of a parameter."""
READ_BYTES = 1 << 30
"""Of a checkpoint, read at a time."""


def scaler_state(scaler: Any) -> dict[str, float]:
    """The state of the loss scale as numbers; {} without one."""
    return {} if scaler is None else {name: float(getattr(scaler, name)) for name in SCALER}


def set_scaler_state(scaler: Any, state: Mapping[str, float]) -> None:
    """Put it back."""
    if scaler is not None:
        scaler._scale.fill_(state["_scale"])
        scaler._growth_step, scaler._hysteresis_step = int(state["_growth_step"]), int(state["_hysteresis_step"])


class ParameterShards:
    """The tensors that this process has a part of."""

    _holders: dict[str, tuple[tuple[int, ...], int, set[int]]] | None = None

    def __init__(self, lm: MoxinLM, optimizer: Any, plugin: Any, dims: ParallelDims) -> None:
        self._optimizer, self._dims = optimizer, dims
        self._parameters = dict(lm.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        self._masters: Mapping[int, Tensor] = optimizer.get_working_to_master_map() or {}
        self._data: Any = getattr(plugin, "dp_group", None) or dist.group.WORLD
        self._tensor: Any = getattr(plugin, "tp_group", None)
        self._mesh = (
            DeviceMesh.from_group(self._tensor, "cpu") if self._tensor is not None and self._tensor.size() > 1 else None
        )

    def _master(self, parameter: Tensor) -> Tensor:
        return self._masters.get(id(parameter), parameter)

    def _tensors(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept of a parameter, as it lies here."""
        master = self._master(parameter)
        moments = moments_of(self._optimizer.optim, master)
        return {WEIGHT: master.detach(), **{key: moments[key] for key in MOMENTS}}

    def held(self) -> HeldTensors:
        """The parts of a batch share out float32 weights and moments; those that products are computed with lie whole
        in each.
        """
        resting = [tensor for parameter in self._parameters.values() for tensor in self._tensors(parameter).values()]
        weights = [parameter.detach() for parameter in self._parameters.values()]
        return HeldTensors(resting, weights, dist.get_process_group_ranks(self._data)[0])

    @staticmethod
    def _cut(parameter: Tensor) -> int | None:
        """Dimension along which tensor parallelism cut it."""
        return get_shard_dim_1d(parameter) % parameter.ndim if is_distributed_tensor(parameter) else None

    def _gathered(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """Undo ZeRO's cut: as tensor parallelism left it."""
        if tensor.shape == parameter.shape:
            return tensor
        flat = tensor.to(parameter.device).flatten()
        every = flat.new_empty(flat.numel() * self._data.size())
        dist.all_gather_into_tensor(every, flat, group=self._data)
        return every[: parameter.numel()].view(parameter.shape)

    def _put(self, value: Tensor, parameter: Tensor) -> None:
        """Fill in what this process keeps of a weight that has the parameter's shape."""
        target = self._tensors(parameter)[WEIGHT]
        if target.shape != parameter.shape:
            parts = self._data.size()
            flat = F.pad(value.flatten(), (0, target.numel() * parts - value.numel()))
            value = flat.chunk(parts)[self._data.rank()].view(target.shape)
        target.copy_(value)

    # --- a fresh or a parent's model ------------------------------------------------------------------------------

    def start_from(self, weights: Weights) -> None:
        """Set the float32 weights, unrounded, one after the other."""
        for name, parameter in self._parameters.items():
            shape, cut = self._shape(name, parameter), self._cut(parameter)
            value = weights(name, shape, whole(shape))
            self._put(value if cut is None else value.chunk(self._tensor.size(), cut)[self._tensor.rank()], parameter)
        self._refresh()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _named(self, value: Tensor, parameter: Tensor) -> Tensor:
        """A tensor with its place in the whole."""
        cut = self._cut(parameter)
        return value if cut is None else DTensor.from_local(value, self._mesh, [Shard(cut)], run_check=False)

    def save(self, folder: Path) -> Callable[[], None]:
        """Each of the processes that could write the same tensor writes every n-th."""
        state: dict[str, Tensor] = {}
        for number, (name, parameter) in enumerate(self._parameters.items()):
            for key, tensor in self._tensors(parameter).items():
                value = self._gathered(tensor, parameter)
                if number % self._data.size() != self._data.rank():
                    continue
                if self._mesh is None or self._tensor.rank() == 0 or self._cut(parameter) is not None:
                    state[stored_name(name, key)] = self._named(value.cpu(), parameter)
        return write_tensors(state, folder, self._dims)

    def load(self, read: Read, updates: int) -> None:
        """From a checkpoint of any topology, of this engine or of `torch`: each process reads what it keeps."""
        self._read(read, KEPT, updates)
        self._refresh()

    def load_moments(self, read: Read, updates: int) -> None:
        """Those of another training, of any topology and engine."""
        self._read(read, MOMENTS, updates)

    def _read(self, read: Read, kept: Sequence[str], updates: int) -> None:
        read(self._wanted(kept))
        for moments in self._optimizer.optim.state.values():
            moments["step"].fill_(updates)

    def _stretch(self, parameter: Tensor) -> slice:
        """What of a flat parameter (as tensor parallelism left it) lies here."""
        kept, count = self._master(parameter), parameter.numel()
        if kept.shape == parameter.shape:
            return slice(0, count)
        begin = self._data.rank() * kept.numel()
        return slice(min(begin, count), min(begin + kept.numel(), count))

    def _wanted(self, kept: Sequence[str]) -> Iterator[dict[str, Part]]:
        """The rows that what lies here is in, about READ_BYTES at a time; they are put in their places once filled."""
        parts: dict[str, Part] = {}
        places: list[tuple[Tensor, str, Tensor]] = []
        size = 0

        def put() -> None:
            for parameter, key, rows in places:
                target, here = self._tensors(parameter)[key], self._stretch(parameter)
                begin = here.start % max(1, rows[0].numel())
                target.view(-1)[: here.stop - here.start].copy_(rows.flatten()[begin : begin + here.stop - here.start])
            parts.clear()
            places.clear()

        for name, parameter in self._parameters.items():
            here, shape, cut = self._stretch(parameter), self._shapes[name], self._cut(parameter)
            if here.start == here.stop:
                continue
            row = math.prod(shape[1:])
            first, last = here.start // row, -(-here.stop // row)
            offsets = [0 if d != cut else self._tensor.rank() * n for d, n in enumerate(shape)]
            offsets[0] += first
            for key in kept:
                rows = torch.empty(last - first, *shape[1:])
                parts[stored_name(name, key)] = Part(rows, tuple(offsets))
                places.append((parameter, key, rows))
                size += rows.nbytes
            if size > READ_BYTES:
                yield parts
                put()
                size = 0
        yield parts
        put()

    def _refresh(self) -> None:
        """The float32 weights have changed: round what is computed with."""
        for parameter in self._parameters.values():
            master = self._master(parameter)
            if master is not parameter:
                parameter.data.copy_(self._gathered(master.detach(), parameter))

    # --- the trained model ----------------------------------------------------------------------------------------

    def export(self, name: str, writer: int, kept: str = WEIGHT) -> Tensor | None:
        """A whole float32 weight, or a moment of it, on the process `writer`; None on the others. Every process has to
        call it.
        """
        if self._holders is None:
            self._holders = self._gather_holders()
        value = self._whole(self._parameters[name], kept) if name in self._parameters else None
        shape, speaker, holders = self._holders[name]
        rank, group = self._dims.rank, self._dims.checkpoint_group
        if rank == writer and value is None:
            value = torch.empty(shape)
            dist.recv(value, speaker, group=group)
        elif rank == speaker and writer not in holders and value is not None:
            dist.send(value.contiguous(), writer, group=group)
        return value if rank == writer else None

    def _gather_holders(self) -> dict[str, tuple[tuple[int, ...], int, set[int]]]:
        """Of each weight its whole shape, the process that sends it, and all that can make it whole."""
        shapes_here = {name: self._shape(name, parameter) for name, parameter in self._parameters.items()}
        speaks = self._data.rank() == 0 and (self._mesh is None or self._tensor.rank() == 0)
        parts: list[Any] = [(shapes_here, speaks)] * self._dims.world_size
        if self._dims.world_size > 1:
            dist.all_gather_object(parts, (shapes_here, speaks), group=self._dims.checkpoint_group)
        holders_of: dict[str, tuple[tuple[int, ...], int, set[int]]] = {}
        for rank, (shapes, tells) in enumerate(parts):
            for name, shape in shapes.items():
                _, speaker, holders = holders_of.get(name, (shape, -1, set()))
                holders_of[name] = shape, rank if tells and speaker < 0 else speaker, holders | {rank}
        return holders_of

    def _shape(self, name: str, parameter: Tensor) -> tuple[int, ...]:
        cut = self._cut(parameter)
        return tuple(n * self._tensor.size() if d == cut else n for d, n in enumerate(self._shapes[name]))

    def _whole(self, parameter: Tensor, kept: str) -> Tensor:
        value, cut = self._gathered(self._tensors(parameter)[kept], parameter), self._cut(parameter)
        if cut is None:
            return value.cpu()
        parts = [torch.empty_like(value) for _ in range(self._tensor.size())]
        dist.all_gather(parts, value.contiguous(), group=self._tensor)
        return torch.cat(parts, cut).cpu()


class ChunkParameterShards(ParameterShards):
    """Gemini's: parameters lie in chunks, and a process has a stretch of some of them, which a parameter may begin or
    end within.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], model: Any, optimizer: Any, dims: ParallelDims) -> None:
        self._optimizer, self._dims, self._shapes = optimizer, dims, dict(shapes)
        prefix = "lm."
        self._parameters = {name: model.name2param[prefix + name] for name in shapes}
        self._mesh = self._tensor = None
        self._data = model.zero_group
        numbers = {parameter: number for number, parameter in optimizer.id_to_real_params.items()}
        self._places = {
            parameter: (shapes[name], numbers[parameter], model.chunk_manager.get_chunk(parameter))
            for name, parameter in self._parameters.items()
        }

    def _tensors(self, parameter: Tensor) -> dict[str, Tensor]:
        _, number, chunk = self._places[parameter]
        if number not in self._optimizer.id_to_fake_params:
            return {key: torch.empty(0, device=self._dims.device) for key in KEPT}
        fake = self._optimizer.id_to_fake_params[number]
        begin, _, size = self._optimizer.get_offsets(number)
        weights = chunk.paired_chunk.payload[begin : begin + size]
        moments = self._optimizer.optim.state[fake]
        if not moments:
            moments["step"] = torch.zeros((), device=weights.device if weights.is_cuda else "cpu")
            moments |= {key: torch.zeros_like(weights) for key in MOMENTS}
        return {WEIGHT: weights, **{key: moments[key] for key in MOMENTS}}

    def held(self) -> HeldTensors:
        """A process holds chunks of its own, and no weights between the steps."""
        return HeldTensors([tensor for p in self._parameters.values() for tensor in self._tensors(p).values()])

    def _stretch(self, parameter: Tensor) -> slice:
        _, start, size = self._optimizer.get_offsets(self._places[parameter][1])
        return slice(start, start + size) if size > 0 else slice(0, 0)

    def _gathered(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        shape, _, chunk = self._places[parameter]
        whole = torch.zeros(shape.numel(), device=self._dims.device)
        whole[self._stretch(parameter)] = tensor.to(whole.device)
        if not chunk.keep_gathered:
            dist.all_reduce(whole, group=self._data)
        return whole.view(shape)

    def _put(self, value: Tensor, parameter: Tensor) -> None:
        self._tensors(parameter)[WEIGHT].copy_(value.flatten()[self._stretch(parameter)])

    def _refresh(self) -> None:
        for chunk in self._optimizer.chunk16_set:
            chunk.optim_update()
