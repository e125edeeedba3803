"""A model folder of the real size that takes no room: its configuration, a tokenizer, and weights with a true header
and holes for data.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.hf_checkpoint import config_json
from stages.lib.modeling.shape import ModelShape

BYTES = {"F32": 4, "BF16": 2}
"""Of a number, by safetensors' name of its type."""


def sparse_parent(folder: Path, shape: ModelShape, entries: int, dtype: str = "F32") -> Path:
    """Write the folder. entries: of the vocabulary."""
    folder.mkdir(parents=True)
    name = {"F32": "float32", "BF16": "bfloat16"}[dtype]
    (folder / "config.json").write_text(json.dumps(config_json(shape, entries, name)))
    with torch.device("meta"):
        model = MoxinLM(shape, entries)
    header, place = {}, 0
    for key, tensor in model.state_dict().items():
        size = BYTES[dtype] * tensor.numel()
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + place)
    return folder


def disk_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk, holes and what links point to left out."""
    return sum(p.lstat().st_blocks * 512 for p in folder.rglob("*"))
