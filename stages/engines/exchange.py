"""What passes between a stage and an engine: the parent's folder, data as JSON lines, checkpoints, weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stages.core.contracts import InputError
from stages.formats import vocabulary


def prepare_parent(parent: Path, folder: Path) -> None:
    """The parent as an engine has to see it: the same files (linked), with padding named. Without it engines add a token, or take </s>."""
    folder.mkdir()
    for path in sorted(parent.iterdir()):
        if path.is_file() and path.name not in ("tokenizer_config.json", "special_tokens_map.json"):
            os.symlink(path.resolve(), folder / path.name)
    pad = vocabulary.SPECIAL[vocabulary.UNK_ID]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        value = json.loads((parent / name).read_text(encoding="utf-8")) if (parent / name).is_file() else {}
        write_json(folder / name, {**value, "pad_token": pad})


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, in order."""
    with open(path, "w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_json(path: Path, value: Any) -> None:
    """One JSON document."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def link_tree(source: Path, target: Path) -> None:
    """The same files under another name, on another file system copies."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(path, place)


def read_torch(folder: Path) -> dict[str, torch.Tensor]:
    """Weights in torch's own format, of which nothing but tensors is unpickled."""
    state: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("pytorch_model*.bin")):
        state.update(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    return state


def read_safetensors(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of a Hugging Face folder."""
    state: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state.update(load_file(path))
    return state


def load_weights(model: torch.nn.Module, state: Mapping[str, torch.Tensor], engine: str) -> None:
    """Put an engine's weights into `model`. Raises InputError when they are not its parent's kind."""
    if not state:
        raise InputError(f"{engine} ended well but left no weights")
    own = model.state_dict()
    wrong = sorted(name for name in own.keys() | state.keys() if name not in own or name not in state or own[name].shape != state[name].shape)
    if wrong:
        raise InputError(f"{engine}'s model is of another shape than its parent: {', '.join(wrong[:3])} ({len(wrong)} tensors in all)")
    model.load_state_dict(state)
