"""The header of a safetensors file, for whoever reads its tensors by ranges: no tensor library is needed.

The format: 8 bytes, the length of the header, little endian; the header, JSON `{name: {dtype, shape, data_offsets}}`
with `__metadata__` for strings; then the tensors' bytes, one after another (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

HEADER_BYTES = 100_000_000
"""The format's own limit."""
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Of a number of each type."""
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies. start, end: bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file holds. tensors: by name, in the order in which they lie."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_header(stream: BinaryIO, size: int) -> Header:
    """The header of a file of `size` bytes, from its beginning: every byte behind it belongs to one tensor.

    Raises ValueError, which says what is wrong.
    """
    head = stream.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= min(HEADER_BYTES, size - 8):
        raise ValueError(f"no safetensors file: its header would have {length} bytes")
    raw = stream.read(length)
    if len(raw) != length:
        raise ValueError(f"it ends within its header of {length} bytes")
    try:
        rows = json.loads(raw, object_pairs_hook=_once)
        metadata = rows.pop(_METADATA, None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError(f"{_METADATA} holds more than strings")
        tensors = [(name, _tensor(row, 8 + length)) for name, row in rows.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header cannot be read ({error})") from error
    tensors.sort(key=lambda pair: (pair[1].start, pair[1].end))
    end = 8 + length
    for name, tensor in tensors:
        if tensor.start != end or tensor.size * 8 != tensor.elements * BITS[tensor.dtype]:
            raise ValueError(f"tensor {name} does not lie where its header says")
        end = tensor.end
    if end != size:
        raise ValueError(f"it has {size:,} bytes, its header tells of {end:,}")
    return Header(dict(tensors), metadata)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    rows = dict(pairs)
    if len(rows) != len(pairs):
        raise ValueError("a name stands there twice")
    return rows


def _tensor(row: Mapping[str, Any], base: int) -> Tensor:
    dtype, shape, (start, end) = row["dtype"], row["shape"], row["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"unknown type {dtype}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise ValueError("shape and offsets are no natural numbers")
    return Tensor(dtype, tuple(shape), base + start, base + end)
