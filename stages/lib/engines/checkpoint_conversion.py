"""What passes between a stage and an engine: the parent's folder, data as JSON lines, checkpoints, weights."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stages.core.errors import InputError
from stages.lib.formats import vocabulary
from stages.lib.formats.tensor_file import read_header


def prepare_parent(parent: Path, folder: Path, dropout: float = 0.0) -> None:
    """The parent as an engine has to see it: its weights, linked, with a configuration and a tokenizer that hold no
    surprise.

    dropout: the stage's own; a parent's would else be that of whoever trained it.
    """
    folder.mkdir()
    written = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
    for path in sorted(parent.iterdir()):
        if path.is_file() and path.name not in written:
            os.symlink(path.resolve(), folder / path.name)
    write_json(folder / "config.json", _configuration(_read(parent, "config.json"), dropout, _dtype(parent)))
    control = {f"{name}_token": vocabulary.SPECIAL[number] for name, number in CONTROL.items()}
    write_json(folder / "special_tokens_map.json", {**_read(parent, "special_tokens_map.json"), **control})
    plain = {"add_bos_token": False, "add_eos_token": False}
    write_json(folder / "tokenizer_config.json", {**_read(parent, "tokenizer_config.json"), **control, **plain})
    write_json(
        folder / "tokenizer.json",
        {**_read(parent, "tokenizer.json"), "post_processor": None, "padding": None, "truncation": None},
    )


CONTROL = {"bos": vocabulary.BOS_ID, "eos": vocabulary.EOS_ID, "unk": vocabulary.UNK_ID, "pad": vocabulary.UNK_ID}
"""Padding is named: without it engines add a token, or take </s>."""
TORCH_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""Of weights, as headers call them."""
DROPOUT = re.compile(r"(dropout|drop|pdrop)$")


def _configuration(config: Mapping[str, Any], dropout: float, dtype: str) -> dict[str, Any]:
    """config.json for training. A cache of keys and values is for writing: flash attention refuses rows that are padded
    on the right where it is on (transformers 4.50, `MistralModel._update_causal_mask`). `dtype`: what the weights are,
    in both spellings.
    """
    fixed = {name: dropout for name in config if DROPOUT.search(name)}
    return {**config, **fixed, "attention_dropout": dropout, "use_cache": False, "torch_dtype": dtype, "dtype": dtype}


def _dtype(folder: Path) -> str:
    """Type of the weights, as torch calls it."""
    path = min(folder.glob("*.safetensors"))
    try:
        with open(path, "rb") as stream:
            header = read_header(stream, path.stat().st_size)
        return TORCH_TYPES[next(iter(header.tensors.values())).dtype]
    except (ValueError, KeyError, StopIteration) as error:
        raise InputError(f"{path.name} holds no weights to go on from: {error}") from error


def _read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """JSON lines, in order. Returns how many."""
    count = 0
    with open(path, "w", encoding="utf-8") as stream:
        for row in rows:
            count += 1
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


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
    expected = model.state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | state.keys()
        if name not in expected or name not in state or expected[name].shape != state[name].shape
    )
    if wrong:
        raise InputError(
            f"{engine}'s model is of another shape than its parent: {', '.join(wrong[:3])} ({len(wrong)} tensors in"
            " all)"
        )
    model.load_state_dict(state)
