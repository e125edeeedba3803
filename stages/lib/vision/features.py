"""`ImageFeatures` on disk: what the frozen towers see of each image, computed once and looked up for ever.

    features-NNNNN.safetensors   "features" [images, patches, width]; "crc32" [images], of the bytes of each image's
    index.json                   names in order, images of each shard, dtype, digest of the images that they were made
    of

Rows are read by ranges where they are stored, and held against their CRC32: a batch costs what it holds, not what the
files hold.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.core.artifacts import FileEntry
from stages.core.errors import InputError
from stages.core.json_text import parsed_json
from stages.core.reading import open_file, read_checked, sense
from stages.lib.formats.tensor_file import read_header

INDEX = "index.json"
SHARD_BYTES = 2 * 2**30
THREADS = 8
"""Rows on their way at once."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""As headers call them."""


def images_a_file(patches: int, width: int, dtype: str) -> int:
    """How many images one file holds: about two gigabytes."""
    return max(1, SHARD_BYTES // (patches * width * DTYPES[dtype].itemsize))


def write_features(path: Path, features: Sequence[Tensor], dtype: str) -> None:
    """One file: features [B, P, F] of its images, in parts, in order."""
    rows = torch.cat([part.to(DTYPES[dtype]).cpu() for part in features]).contiguous()
    sums = [zlib.crc32(row.view(torch.uint8).numpy().data) for row in rows]
    save_file({"features": rows, "crc32": torch.tensor(sums, dtype=torch.int64)}, path)


def write_index(folder: Path, names: Sequence[str], counts: Sequence[int], dtype: str, digest: str) -> None:
    """The index: names in order, images of each file, digest of the images that they were made of."""
    index = {"names": list(names), "images": list(counts), "dtype": dtype, "images_digest": digest}
    (folder / INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _File:
    """Where the rows of a file lie."""

    entry: FileEntry
    start: int
    shape: tuple[int, int]
    sums: np.ndarray


class Features:
    """Features by image name."""

    def __init__(self, entries: Sequence[FileEntry]) -> None:
        """entries: the files of the artifact."""
        named = {entry.path: entry for entry in entries}
        try:
            with sense(named[INDEX], ValueError), open_file(named[INDEX]) as stream:
                index = parsed_json(stream.read())
            self._dtype = DTYPES[index["dtype"]]
            self._counts = list(index["images"])
            self._entries = [named[f"features-{n:05d}.safetensors"] for n in range(len(self._counts))]
            self.digest = str(index["images_digest"])
            shards = [(shard, row) for shard, count in enumerate(self._counts) for row in range(count)]
            self._where = dict(zip(index["names"], shards, strict=True))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"the image features cannot be read: {error}") from error
        self._file = lru_cache(maxsize=None)(self._read_header)
        self._readers = ThreadPoolExecutor(THREADS, thread_name_prefix="features")

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    @property
    def names(self) -> list[str]:
        """Of all images, in order."""
        return list(self._where)

    def batch(self, names: Sequence[str]) -> Tensor:
        """Features [B, P, F] of these images. Raises InfraError when the store fails, Damaged (InputError for a file of
        this machine) when a row is lost or another.
        """
        different = list(dict.fromkeys(names))
        rows = dict(zip(different, self._readers.map(self._row, different), strict=True))
        return torch.stack([rows[name] for name in names])

    def _row(self, name: str) -> Tensor:
        """Of one image, verified."""
        shard, row = self._where[name]
        file = self._file(shard)
        size = file.shape[0] * file.shape[1] * self._dtype.itemsize

        def problem(data: bytes) -> str:
            return "" if zlib.crc32(data) == file.sums[row] else f"row {row} is not that of its CRC32"

        data = read_checked(file.entry, file.start + row * size, size, problem)
        return torch.frombuffer(bytearray(data), dtype=self._dtype).reshape(file.shape)

    def _read_header(self, shard: int) -> _File:
        entry = self._entries[shard]
        with sense(entry, ValueError, KeyError), open_file(entry) as stream:
            tensors = read_header(stream, entry.size).tensors
            features, checks = tensors["features"], tensors["crc32"]
            images, patches, width = features.shape
            if (features.dtype, checks.dtype) != (STORED[self._dtype], "I64"):
                raise ValueError(f"it holds {features.dtype} and {checks.dtype}, {INDEX} says {self._dtype}")
            stream.seek(checks.start)
            sums = np.frombuffer(stream.read(checks.size), np.int64)
            if images != self._counts[shard] or len(sums) != images:
                raise ValueError(f"it holds {images} images, {INDEX} says {self._counts[shard]}")
        return _File(entry, features.start, (patches, width), sums)
