"""`ImageFeatures` on disk: what the frozen towers see of each image, computed once and looked up for ever.

    features-NNNNN.safetensors   "features" [images, patches, width]
    index.json                   names in order, images of each shard, dtype, digest of the images that they were made
    of

A row is read through the memory map: a batch costs what it holds, not what the files hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.core.errors import InputError

INDEX = "index.json"
SHARD_BYTES = 2 * 2**30
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def images_a_file(patches: int, width: int, dtype: str) -> int:
    """How many images one file holds: about two gigabytes."""
    return max(1, SHARD_BYTES // (patches * width * DTYPES[dtype].itemsize))


def write_features(path: Path, features: Sequence[Tensor], dtype: str) -> None:
    """One file: features [B, P, F] of its images, in parts, in order."""
    save_file({"features": torch.cat([part.to(DTYPES[dtype]).cpu() for part in features]).contiguous()}, path)


def write_index(folder: Path, names: Sequence[str], counts: Sequence[int], dtype: str, digest: str) -> None:
    """The index: names in order, images of each file, digest of the images that they were made of."""
    index = {"names": list(names), "images": list(counts), "dtype": dtype, "images_digest": digest}
    (folder / INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")


class Features:
    """Features by image name."""

    def __init__(self, folder: Path) -> None:
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            self._files: list[Any] = [
                safe_open(folder / f"features-{n:05d}.safetensors", "pt").get_slice("features")
                for n in range(len(index["images"]))
            ]
            self.digest = str(index["images_digest"])
            shards = [(shard, row) for shard, count in enumerate(index["images"]) for row in range(count)]
            self._where = dict(zip(index["names"], shards, strict=True))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(f"the image features cannot be read: {error}") from error

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def batch(self, names: Sequence[str]) -> Tensor:
        """Features [B, P, F] of these images."""
        rows = []
        for name in names:
            shard, row = self._where[name]
            rows.append(self._files[shard][row : row + 1])
        return torch.cat(rows)
