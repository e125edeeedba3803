"""Tensors in stored safetensors files, read by ranges: a process fetches the pieces of which it needs something.

The files are those of PyTorch's distributed checkpoint: each piece with its place in the whole tensor. Headers are read
once, by one process (`read_headers`); every other one is given them. What is read lies in whole blocks that are held
against their CRC32 (`stages.core.range_file`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.tensor import DTensor

from stages.core.artifacts import FileEntry
from stages.core.errors import InputError
from stages.core.json_text import parsed_json
from stages.core.range_file import BLOCK
from stages.core.reading import open_file, sense, unreadable
from stages.core.store_errors import Damaged
from stages.lib.formats.tensor_file import read_header

THREADS = 4
"""Files that a process reads at the same time."""
SLAB = 4 * BLOCK
"""Bytes of a file in memory at a time."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PLACES = "DCP_SHARDING_INFO"
"""In a file's metadata: JSON that says where its pieces lie in their tensors, as PyTorch writes it."""


@dataclass(frozen=True)
class Piece:
    """A stored part of a tensor. offsets: of its first element in the whole; begin: of its bytes in the file."""

    name: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    begin: int

    @property
    def row_bytes(self) -> int:
        """Of one index of the first dimension."""
        return math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Part:
    """What is wanted of a tensor: a block of it that begins at `offsets` and has the shape of `target`, which is
    filled.
    """

    target: Tensor
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class _Copy:
    """Rows of a piece, and where they go. Offsets and lengths: of the piece, and of the target."""

    piece: Piece
    source: tuple[int, ...]
    place: tuple[int, ...]
    lengths: tuple[int, ...]
    target: Tensor

    @property
    def begin(self) -> int:
        return self.piece.begin + self.source[0] * self.piece.row_bytes

    @property
    def end(self) -> int:
        return self.begin + self.lengths[0] * self.piece.row_bytes

    def rows(self) -> list[_Copy]:
        """In copies of no more than SLAB, as far as rows allow it."""
        step = max(1, SLAB // max(1, self.piece.row_bytes))
        return [
            _Copy(
                self.piece,
                (self.source[0] + row, *self.source[1:]),
                (self.place[0] + row, *self.place[1:]),
                (min(step, self.lengths[0] - row), *self.lengths[1:]),
                self.target,
            )
            for row in range(0, self.lengths[0], step)
        ]

    def put(self, data: memoryview) -> None:
        """data: the bytes from `begin` to `end`."""
        flat = torch.frombuffer(bytearray(data), dtype=DTYPES[self.piece.dtype])
        rows = flat.view(self.lengths[0], *self.piece.shape[1:])
        slices = [slice(at, at + length) for at, length in zip(self.source[1:], self.lengths[1:], strict=True)]
        places = [slice(at, at + length) for at, length in zip(self.place, self.lengths, strict=True)]
        self.target[tuple(places)].copy_(rows[(slice(None), *slices)])


class StoredTensors:
    """The tensors of some files, by name."""

    def __init__(self, files: Sequence[FileEntry], headers: Sequence[Sequence[Piece]]) -> None:
        """headers: `read_headers` of these files. Raises Damaged or InfraError where they leave a tensor with gaps."""
        self._files = files
        self._pieces: dict[str, list[tuple[int, Piece]]] = defaultdict(list)
        for number, header in enumerate(headers):
            for piece in header:
                self._pieces[piece.name].append((number, piece))
        self.shapes = {name: self._shape(name) for name in self._pieces}

    def _shape(self, name: str) -> tuple[int, ...]:
        pieces = [piece for _, piece in self._pieces[name]]
        ends = [[at + size for at, size in zip(p.offsets, p.shape, strict=True)] for p in pieces]
        shape = tuple(max(end) for end in zip(*ends, strict=True))
        if math.prod(shape) != sum(math.prod(piece.shape) for piece in pieces):
            why = f"the pieces of {name} are not those of one tensor"
            errors = [unreadable(self._files[number], why) for number, _ in self._pieces[name]]
            raise next((error for error in errors if isinstance(error, Damaged)), errors[0])
        return shape

    def read(self, targets: Mapping[str, Tensor | Part]) -> None:
        """Fill tensors (of a DTensor what lies here) from what the files have under their names.

        Raises InputError for a tensor that is not there or has another shape, Damaged, InfraError.
        """
        copies: dict[int, list[_Copy]] = defaultdict(list)
        for name, target in targets.items():
            for number, copy in self._copies(name, target):
                copies[number] += copy.rows()
        with ThreadPoolExecutor(THREADS) as pool, torch.no_grad():
            for done in [pool.submit(self._read_file, number, todo) for number, todo in copies.items()]:
                done.result()

    def _copies(self, name: str, target: Tensor | Part) -> list[tuple[int, _Copy]]:
        shape = self.shapes.get(name)
        if shape is None:
            raise InputError(f"{self._where} holds no tensor {name}")
        if isinstance(target, Part):
            local, offsets = target.target, target.offsets
        else:
            if tuple(target.shape) != shape:
                raise InputError(f"{self._where}: {name} has the shape {shape}, not {tuple(target.shape)}")
            local, offsets = target, (0,) * target.ndim
            if isinstance(target, DTensor):
                (chunk,) = target.__create_chunk_list__()
                local, offsets = target.to_local(), tuple(chunk.offsets)
        if local.numel() == 0:
            return []
        stored = [(n, _with_rows(piece)) for n, piece in self._pieces[name]]
        held = TensorStorageMetadata(
            properties=TensorProperties(dtype=DTYPES[stored[0][1].dtype]),
            size=torch.Size(shape or (1,)),
            chunks=[ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.shape)) for _, p in stored],
        )
        local = local.detach().view(1) if local.ndim == 0 else local.detach()
        here = ChunkStorageMetadata(torch.Size(offsets or (0,)), torch.Size(local.shape))
        copies = []
        for item in create_read_items_for_chunk_list(name, held, [here]):
            assert item.storage_index.index is not None
            number, piece = stored[item.storage_index.index]
            source, place, lengths = tuple(item.storage_offsets), tuple(item.dest_offsets), tuple(item.lengths)
            copies.append((number, _Copy(piece, source, place, lengths, local)))
        return copies

    @property
    def _where(self) -> str:
        return self._files[0].object.rpartition("/")[0] if self._files else "no file"

    def _read_file(self, number: int, copies: list[_Copy]) -> None:
        entry = self._files[number]
        copies.sort(key=lambda copy: copy.begin)
        with open_file(entry, verified=True) as stream, torch.no_grad():
            together: list[_Copy] = []
            for copy in copies:
                far = together and (copy.begin > together[-1].end + BLOCK or copy.end > together[0].begin + SLAB)
                if far:
                    _read_slab(stream, entry, together)
                    together = []
                together.append(copy)
            if together:
                _read_slab(stream, entry, together)


def _read_slab(stream: BinaryIO, entry: FileEntry, copies: Sequence[_Copy]) -> None:
    begin, end = copies[0].begin, max(copy.end for copy in copies)
    stream.seek(begin)
    data = stream.read(end - begin)
    if len(data) != end - begin:
        raise unreadable(entry, "it is shorter than its header says")
    for copy in copies:
        copy.put(memoryview(data)[copy.begin - begin : copy.end - begin])


def _with_rows(piece: Piece) -> Piece:
    """A single number as a tensor of one row."""
    return piece if piece.shape else Piece(piece.name, (0,), (1,), piece.dtype, piece.begin)


def read_headers(files: Sequence[FileEntry]) -> list[tuple[Piece, ...]]:
    """What each safetensors file holds. Raises Damaged or InfraError."""
    with ThreadPoolExecutor(4 * THREADS) as pool:
        return list(pool.map(_read_header, files))


def _read_header(entry: FileEntry) -> tuple[Piece, ...]:
    with open_file(entry) as stream, sense(entry, ValueError, KeyError, TypeError, AttributeError):
        header = read_header(stream, entry.size)
        places = parsed_json(header.metadata.get(_PLACES, "{}"))
        pieces = []
        for name, tensor in header.tensors.items():
            if tensor.dtype not in DTYPES:
                raise ValueError(f"{name} is of type {tensor.dtype}")
            offsets = tuple(places[name]["saved_offsets"]) if places else (0,) * len(tensor.shape)
            if len(offsets) != len(tensor.shape):
                raise ValueError(f"the place of {name} is not one in a tensor of {len(tensor.shape)} dimensions")
            pieces.append(Piece(name, offsets, tensor.shape, tensor.dtype, tensor.start))
        return tuple(pieces)
