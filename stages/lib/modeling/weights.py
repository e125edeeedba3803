"""A model's first weights, wherever they come from, read or drawn by parts: a process makes what it holds, and no more
than one parameter beside.

A model is built on the `meta` device, cut over the processes there, and only then gets memory and values
(`materialize`). Stored weights are read by slices. Fresh ones follow from the seed and the parameter's name, block of
rows by block of rows, so that they are the same for any number of processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from stages.core.errors import InputError

INIT_STD = 0.02
"""Of all matrices; those that write into the residual stream get 0.02 / sqrt(2 x layers), so that the variance of the
stream does not grow with depth (GPT-2; the paper's 3.1 asks for an initialization against vanishing and exploding
gradients and gives no formula)."""
INTO_STREAM = ("o_proj.weight", "down_proj.weight")
BLOCK_ROWS = 64
"""Rows of a matrix that are drawn together: at 64 processes and width 4,096 what one of them holds."""
Part = tuple[slice, ...]
"""Which part of a tensor: a range in each dimension."""


class Weights(Protocol):
    """Where a model's first weights come from."""

    def __call__(self, name: str, shape: Sequence[int], part: Part) -> Tensor:
        """A part of a parameter of this name and whole shape: float32, on the processor."""
        ...


class FreshWeights:
    """Drawn ones of the decoder: norms are 1, matrices normal (`INIT_STD`)."""

    def __init__(self, seed: int, layers: int) -> None:
        self._seed, self._residual = seed, INIT_STD / math.sqrt(2 * layers)

    def __call__(self, name: str, shape: Sequence[int], part: Part) -> Tensor:
        if len(shape) == 1:
            return torch.ones(part[0].stop - part[0].start)
        std = self._residual if name.endswith(INTO_STREAM) else INIT_STD
        rows, columns = part
        out = torch.empty(rows.stop - rows.start, columns.stop - columns.start)
        for block in range(rows.start // BLOCK_ROWS, -(-rows.stop // BLOCK_ROWS)):
            first = block * BLOCK_ROWS
            drawn = torch.empty(min(BLOCK_ROWS, shape[0] - first), shape[1])
            drawn.normal_(0.0, std, generator=self._generator(name, block))
            begin, end = max(first, rows.start), min(first + len(drawn), rows.stop)
            out[begin - rows.start : end - rows.start] = drawn[begin - first : end - first, columns]
        return out

    def _generator(self, name: str, block: int) -> torch.Generator:
        digest = hashlib.blake2b(f"{self._seed}/{name}/{block}".encode(), digest_size=4).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class StoredWeights:
    """Those of a model folder, in one safetensors file or several: of each, only what is asked for is read."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError for files that are damaged or hold a tensor twice."""
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path.name} is damaged: {error}") from error
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if name in self._files:
                    raise InputError(f"{path.name} holds the weight {name}, and so does another file beside it")
                self._files[name] = file

    def shapes(self) -> dict[str, list[int]]:
        """Of all weights, by name."""
        return {name: file.get_slice(name).get_shape() for name, file in self._files.items()}

    def require(self, model: nn.Module) -> StoredWeights:
        """Raise InputError unless the folder has the weights of a model, and no others; returns itself."""
        shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
        stored = self.shapes()
        for name in sorted(shapes.keys() | stored.keys()):
            if name not in stored:
                raise InputError(f"the weights do not fit config.json: there is no {name}")
            if name not in shapes:
                raise InputError(f"the weights do not fit config.json: it has no place for {name}")
            if stored[name] != shapes[name]:
                raise InputError(
                    f"the weights do not fit config.json: {name} has the shape {stored[name]}, not {shapes[name]}"
                )
        return self

    def __call__(self, name: str, shape: Sequence[int], part: Part) -> Tensor:
        if any(one.stop <= one.start for one in part):
            return torch.empty([max(0, one.stop - one.start) for one in part])
        return self._files[name].get_slice(name)[part].float()


def whole(shape: Sequence[int]) -> Part:
    """All of a tensor."""
    return tuple(slice(0, length) for length in shape)


def held_part(parameter: Tensor) -> Part:
    """Which part of a parameter this process holds: all of it, unless it is a DTensor."""
    if not isinstance(parameter, DTensor):
        return whole(parameter.shape)
    sizes, offsets = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))


@torch.no_grad()
def materialize(model: nn.Module, device: torch.device, weights: Weights) -> None:
    """Give a model its weights, and memory on a device where it was built on `meta`. What of it is real already (a
    buffer that is no weight) keeps its values.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        real = {name: buffer for name, buffer in model.named_buffers() if not buffer.is_meta}
        model.to_empty(device=device)
        for name, buffer in model.named_buffers():
            buffer.copy_(real[name])
    for name, parameter in model.named_parameters():
        held = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        held.copy_(weights(name, parameter.shape, held_part(parameter)))
