"""The two towers: imported from Hugging Face or timm weights, or drawn by a seed; saved and loaded as ordinary folders.

The position embedding is resampled once, at import, to the image size in use, which is stored as `image_size`. SigLIP
gets the exact GELU, as timm's has: transformers' default differs by 8e-4 (docs/recipe.md).
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

from stages.core.errors import InputError
from stages.lib.modeling.loading import refuse_incomplete
from stages.lib.vision.shape import REGISTERS, TowerShape

Kind = Literal["dino", "siglip"]
POSITION_STD = 0.3
"""Of the position embedding of drawn towers: large enough that a patch's place shows in its features."""
ATTENTION = "sdpa"
"""What a loaded folder gets too: equal features, bit for bit, whichever way a tower came to be."""
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched, whatever a folder's configuration names


def resample_positions(positions: Tensor, side: int) -> Tensor:
    """Position embedding [N, D] of a square grid as [side * side, D]: bicubic with antialiasing, as timm resamples."""
    old = math.isqrt(len(positions))
    if old * old != len(positions):
        raise InputError(f"a position embedding of {len(positions)} entries is no square grid")
    if old == side:
        return positions
    grid = positions.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    return grid.permute(0, 2, 3, 1).reshape(side * side, -1).to(positions.dtype)


# --- key maps from timm
# ------------------------------------------------------------------------------------------------


def dino_from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's DINOv2 with registers under the names of transformers' model. Its class token has no position: zeros."""
    width = state["cls_token"].shape[-1]
    out = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.register_tokens": state["reg_token"],
        "embeddings.mask_token": torch.zeros(1, width),
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "embeddings.position_embeddings": torch.cat([torch.zeros(1, 1, width), state["pos_embed"]], dim=1),
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for block in range(_blocks(state)):
        old, new = f"blocks.{block}.", f"encoder.layer.{block}."
        out |= _attention(state, f"{old}attn.", f"{new}attention.", "o_proj")
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            out |= {f"{new}{name}.{part}": state[f"{old}{name}.{part}"] for part in ("weight", "bias")}
        for number in (1, 2):
            out[f"{new}layer_scale{number}.lambda1"] = state[f"{old}ls{number}.gamma"]
    return out


def siglip_from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's SigLIP under the names of transformers' model, without the pooling head (unused: patches are wanted)."""
    out = {
        "embeddings.patch_embedding.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": state["patch_embed.proj.bias"],
        "embeddings.position_embedding.weight": state["pos_embed"][0],
        "post_layernorm.weight": state["norm.weight"],
        "post_layernorm.bias": state["norm.bias"],
    }
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for block in range(_blocks(state)):
        old, new = f"blocks.{block}.", f"encoder.layers.{block}."
        out |= _attention(state, f"{old}attn.", f"{new}self_attn.", "out_proj")
        for before, after in names.items():
            out |= {f"{new}{after}.{part}": state[f"{old}{before}.{part}"] for part in ("weight", "bias")}
    return out


def _attention(state: Mapping[str, Tensor], old: str, new: str, output: str) -> dict[str, Tensor]:
    """timm keeps query, key and value in one matrix."""
    out = {}
    for part in ("weight", "bias"):
        for name, value in zip("qkv", state[f"{old}qkv.{part}"].chunk(3), strict=True):
            out[f"{new}{name}_proj.{part}"] = value.clone()
        out[f"{new}{output}.{part}"] = state[f"{old}proj.{part}"]
    return out


def _blocks(state: Mapping[str, Tensor]) -> int:
    return len({key.split(".")[1] for key in state if key.startswith("blocks.")})


_FROM_TIMM: Mapping[Kind, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "dino": dino_from_timm,
    "siglip": siglip_from_timm,
}
_FOREIGN = {"dino": ("cls_token", "reg_token", "ls1.gamma"), "siglip": ("attn_pool",)}
"""Names by which one knows timm's weights of each tower."""
_UNUSED = r"(vision_model\.)?head\."
"""SigLIP's pooling head: patches are wanted, and timm's file may lack it."""


# --- configurations and models
# -----------------------------------------------------------------------------------------


def dino_config(shape: TowerShape, size: int) -> Dinov2WithRegistersConfig:
    """transformers' configuration of a DINOv2 tower."""
    if shape.intermediate % shape.hidden:
        raise InputError(f"DINOv2: intermediate {shape.intermediate} is no multiple of hidden {shape.hidden}")
    return Dinov2WithRegistersConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        mlp_ratio=shape.intermediate // shape.hidden,
        image_size=size,
        patch_size=shape.patch,
        num_register_tokens=REGISTERS,
    )


def siglip_config(shape: TowerShape, size: int) -> SiglipVisionConfig:
    """transformers' configuration of a SigLIP tower: exact GELU, no pooling head."""
    config = SiglipVisionConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        image_size=size,
        patch_size=shape.patch,
        hidden_act="gelu",
    )
    config.vision_use_head = False
    return config


def draw_towers(
    dino: TowerShape, siglip: TowerShape, size: int, seed: int
) -> tuple[Dinov2WithRegistersModel, SiglipVisionModel]:
    """Towers with drawn weights: features that tell images apart, without any training."""
    towers = Dinov2WithRegistersModel(dino_config(dino, size)), SiglipVisionModel(siglip_config(siglip, size))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tower in towers:
            tower.set_attn_implementation(ATTENTION)
            for name, parameter in tower.named_parameters():
                _draw(name, parameter, generator)
    return towers[0].eval(), towers[1].eval()


def _draw(name: str, parameter: nn.Parameter, generator: torch.Generator) -> None:
    if "position_embedding" in name:
        parameter.normal_(0.0, POSITION_STD, generator=generator)
    elif "lambda1" in name or (parameter.ndim == 1 and name.endswith("weight")):
        parameter.fill_(1.0)
    elif parameter.ndim == 1:
        parameter.zero_()
    else:
        flat = parameter.view(parameter.shape[0], -1)  # Xavier's uniform, of the matrix that it multiplies by
        bound = math.sqrt(6.0 / sum(flat.shape))
        flat.uniform_(-bound, bound, generator=generator)


def import_tower(kind: Kind, path: Path, shape: TowerShape, size: int) -> Any:
    """A tower from a Hugging Face folder, or from a timm safetensors file. Raises InputError: what does not fit."""
    if size % shape.patch:
        raise InputError(f"{kind}: image size {size} is no multiple of patch {shape.patch}")
    if path.is_dir():
        return _from_folder(kind, path, shape, size)
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{kind}: {path.name} cannot be read: {error}") from error
    if not any(mark in key for key in state for mark in _FOREIGN[kind]):
        raise InputError(f"{kind}: {path.name} holds no timm weights of it; give a Hugging Face folder, or timm's file")
    try:
        return _filled(kind, _FROM_TIMM[kind](state), shape, size)
    except KeyError as error:
        raise InputError(f"{kind}: {path.name} has no weight {error}") from error


def _from_folder(kind: Kind, path: Path, shape: TowerShape, size: int) -> Any:
    model_type: Any = Dinov2WithRegistersModel if kind == "dino" else SiglipVisionModel
    logging.getLogger("transformers").setLevel(logging.ERROR)  # a text tower beside it is left out: that is meant
    try:
        tower, info = model_type.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{kind}: the folder cannot be loaded: {str(error).splitlines()[0]}") from error
    refuse_incomplete(
        info,
        f"{kind}: the folder",
        may_lack=_UNUSED,
        may_have=rf"{_UNUSED}|text_model\.|logit_(scale|bias)|classifier\.",
    )
    state = {
        key: value for key, value in tower.state_dict().items() if not key.startswith(("head.", "vision_model.head."))
    }
    return _filled(kind, state, shape, size)


def _filled(kind: Kind, state: dict[str, Tensor], shape: TowerShape, size: int) -> Any:
    """A model of the shape with these weights, positions resampled."""
    side = size // shape.patch
    if kind == "dino":
        key = "embeddings.position_embeddings"
        state[key] = torch.cat([state[key][:, :1], resample_positions(state[key][0, 1:], side)[None]], dim=1)
        model: Any = Dinov2WithRegistersModel(dino_config(shape, size))
    else:
        key = "embeddings.position_embedding.weight"
        state[key] = resample_positions(state[key], side)
        model = SiglipVisionModel(siglip_config(shape, size))
    model.set_attn_implementation(ATTENTION)
    try:
        model.load_state_dict({name: value.float() for name, value in state.items()}, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise InputError(f"{kind}: the weights do not fit the shape that is set: {lines[-1]}") from error
    return model.eval()


# --- the artifact
# ------------------------------------------------------------------------------------------------------


def save_towers(folder: Path, dino: Dinov2WithRegistersModel, siglip: SiglipVisionModel) -> None:
    """Write `dino/` and `siglip/`."""
    for name, tower in (("dino", dino), ("siglip", siglip)):
        tower.save_pretrained(folder / name)
        config = folder / name / "config.json"
        values = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_towers(folder: Path) -> tuple[Any, Any]:
    """Read them back, in evaluation mode. Raises InputError when the folder is damaged."""
    try:
        types: tuple[Any, Any] = (Dinov2WithRegistersModel, SiglipVisionModel)
        options = {"local_files_only": True, "output_loading_info": True}
        (dino, seen), (siglip, also) = (
            t.from_pretrained(folder / name, **options) for name, t in zip(("dino", "siglip"), types, strict=True)
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the towers cannot be loaded: {str(error).splitlines()[0]}") from error
    for name, info in (("dino", seen), ("siglip", also)):
        refuse_incomplete(info, f"the tower's folder {name}", may_lack=_UNUSED)
    return dino.eval(), siglip.eval()


def patches(dino: Any, siglip: Any) -> int:
    """Patches of an image; both towers must cut it alike. dino, siglip: configurations. Raises InputError."""
    counts = [(config.image_size // config.patch_size) ** 2 for config in (dino, siglip)]
    if counts[0] != counts[1]:
        raise InputError(f"DINOv2 has {counts[0]} patches, SigLIP {counts[1]}: give both the same patch size")
    return counts[0]
