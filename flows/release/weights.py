"""Weights as a hub has them: safetensors of at most 5 GB, with an index. Bytes are copied by ranges; no tensor library
is needed, and no more of a model is in memory at once than one block of a file.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from stages.core.errors import InputError
from stages.lib.formats import tensor_file

MAX_SHARD_BYTES = 5_000_000_000
"""The hub's own limit for a shard (huggingface_hub's MAX_SHARD_SIZE, '5GB')."""
INDEX, PATTERN = "model.safetensors.index.json", "model{suffix}.safetensors"
SUFFIX = ".safetensors"
_BLOCK = 16 << 20


@dataclass(frozen=True)
class Tensor(tensor_file.Tensor):
    """Where one tensor lies, and in which file."""

    file: Path


@dataclass(frozen=True)
class Weights:
    """What lies in a folder. files: names in order; split_anew: whether they hold other shards than the model's."""

    files: tuple[str, ...]
    tensors: int
    parameters: int
    size: int
    dtypes: tuple[str, ...]
    split_anew: bool


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in order. Raises InputError."""
    try:
        with open(path, "rb") as stream:
            header = tensor_file.read_header(stream, path.stat().st_size)
    except ValueError as error:
        raise InputError(f"{path.name}: {error}") from error
    return {name: Tensor(t.dtype, t.shape, t.start, t.end, path) for name, t in header.tensors.items()}


def _size(tensor: Tensor) -> int:
    return tensor.size


def lay_out(sources: Sequence[Path], folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> Weights:
    """Bring the weights of a model into a folder as the hub's clients split them. sources: its safetensors, which move
    there where their split already is such; otherwise they are split anew and stay.

    Raises InputError for files that are damaged or hold a tensor twice; OSError.
    """
    import huggingface_hub

    headers = {path: read_header(path) for path in sources}
    tensors: dict[str, Tensor] = {}
    for path, header in headers.items():
        if twice := tensors.keys() & header.keys():
            raise InputError(f"tensor {min(twice)} is in {path.name} and in {tensors[min(twice)].file.name}")
        tensors |= header
    if not tensors:
        raise InputError("the model has no weights in safetensors")
    kept = _as_the_hub(headers, max_shard_bytes)
    if kept:
        placed = {path.name: list(header) for path, header in headers.items()}
        for path in sources:
            os.replace(path, folder / path.name)
    else:
        split = cast("Any", huggingface_hub).split_state_dict_into_shards_factory(
            {name: tensors[name] for name in sorted(tensors, key=_natural)},
            get_storage_size=_size,
            filename_pattern=PATTERN,
            max_shard_size=max_shard_bytes,
        )
        placed = split.filename_to_tensors
        for file, names in placed.items():
            _write_shard(folder / file, {name: tensors[name] for name in names})
    total = sum(tensor.size for tensor in tensors.values())
    if len(placed) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": _weight_map(placed)}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return Weights(
        files=tuple(sorted(placed)),
        tensors=len(tensors),
        parameters=sum(tensor.elements for tensor in tensors.values()),
        size=total,
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()})),
        split_anew=not kept,
    )


def _weight_map(placed: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {name: file for file, names in placed.items() for name in names}


def _as_the_hub(headers: Mapping[Path, Mapping[str, Tensor]], most: int) -> bool:
    """Whether files already are what a hub's client would have written: names, number, and sizes."""
    names = sorted(path.name for path in headers)
    expected = (
        [PATTERN.format(suffix="")]
        if len(names) == 1
        else [PATTERN.format(suffix=f"-{number + 1:05d}-of-{len(names):05d}") for number in range(len(names))]
    )
    return names == expected and all(
        len(header) == 1 or sum(tensor.size for tensor in header.values()) <= most for header in headers.values()
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """By which layers come in the order of their numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One file. The widest types come first, so that all lie aligned, as the format's own library has it."""
    order = sorted(tensors, key=lambda name: (-tensor_file.BITS[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.size],
        }  # fmt: skip
        at += tensor.size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with ExitStack() as opened, open(path, "wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        files = {tensor.file for tensor in tensors.values()}
        streams = {file: opened.enter_context(open(file, "rb")) for file in files}
        for name in order:
            _copy(streams[tensors[name].file], out, tensors[name])


def _copy(source: BinaryIO, out: BinaryIO, tensor: Tensor) -> None:
    source.seek(tensor.start)
    left = tensor.size
    while left:
        block = source.read(min(_BLOCK, left))
        if not block:
            raise InputError(f"{tensor.file.name} ended {left:,} bytes early")
        out.write(block)
        left -= len(block)
