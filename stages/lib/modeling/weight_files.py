"""A model's weights as files of at most 5 GB with an index, as the hub's clients split them, written tensor by tensor.

A file's header says where each tensor lies, so tensors come in any order and leave memory once they are written. The
bytes are those of safetensors' own `save_file`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

SHARD_SIZE = "5GB"
"""Of one file at most, unless one weight is larger (huggingface_hub's own limit)."""
ITEM = 4
"""Bytes of a number: all is float32."""


def total_bytes(shapes: Mapping[str, Sequence[int]]) -> int:
    """Of weights of these shapes."""
    return sum(ITEM * math.prod(shape) for shape in shapes.values())


def split(shapes: Mapping[str, Sequence[int]], stem: str = "model") -> dict[str, list[str]]:
    """Names of the weights by file, in the order that they are given in. stem: what the files' names begin with."""
    parts = split_state_dict_into_shards_factory(
        dict(shapes),
        get_storage_size=lambda shape: ITEM * math.prod(shape),
        filename_pattern=stem + "{suffix}.safetensors",
        max_shard_size=SHARD_SIZE,
    )
    return {file: list(names) for file, names in parts.filename_to_tensors.items()}


def write_index(files: Mapping[str, Sequence[str]], total: int, folder: Path, stem: str = "model") -> None:
    """The index, where there is more than one file. files: names of weights by file. total: bytes of all weights."""
    if len(files) > 1:
        index: dict[str, Any] = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        path = folder / f"{stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class WeightFile:
    """One file that is being written. Leaving it raises ValueError when a tensor is missing."""

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in sorted(shapes):
            end = at + ITEM * math.prod(shapes[name])
            header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [at, end]}
            at = end
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        raw += b" " * (-len(raw) % 8)
        self._starts = {name: 8 + len(raw) + header[name]["data_offsets"][0] for name in shapes}
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._stream = open(path, "wb")  # noqa: SIM115 - `__exit__` closes it
        self._stream.write(len(raw).to_bytes(8, "little") + raw)
        self._stream.truncate(8 + len(raw) + at)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one of the tensors."""
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != self._shapes[name]:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, the file has room for {self._shapes}")
        self._stream.seek(self._starts.pop(name))
        data: Any = tensor.detach().cpu().contiguous().numpy()
        self._stream.write(memoryview(data).cast("B") if tensor.numel() else b"")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        if kind is None and self._starts:
            raise ValueError(f"no weight came for {min(self._starts)}, and {len(self._starts) - 1} more")
