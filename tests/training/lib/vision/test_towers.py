"""The towers: timm's weights under transformers' names, positions resampled once, and what a wrong file ends in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from stages.core.errors import InputError
from stages.lib.vision import towers
from stages.lib.vision.modeling_moxin_vlm import FEATURE_LAYER, tower_features
from stages.lib.vision.shape import REGISTERS, TowerShape
from tests.support.vision import DINO, SIGLIP, SIZE

State = dict[str, Tensor]


def timm_weights(shape: TowerShape, grid: int, dino: bool, seed: int = 5) -> State:
    """Random weights under timm's names, in timm's shapes (vision_transformer.py: one qkv matrix, `ls.gamma`, no class
    position).
    """
    g = torch.Generator().manual_seed(seed)

    def draw(*size: int, scale: float = 0.2) -> Tensor:
        return torch.randn(*size, generator=g) * scale

    d, m = shape.hidden, shape.intermediate
    state = {
        "patch_embed.proj.weight": draw(d, 3, shape.patch, shape.patch),
        "patch_embed.proj.bias": draw(d),
        "pos_embed": draw(1, grid * grid, d),
        "norm.weight": draw(d),
        "norm.bias": draw(d),
    }
    if dino:
        state |= {"cls_token": draw(1, 1, d), "reg_token": draw(1, REGISTERS, d)}
    else:
        state |= {"attn_pool.latent": draw(1, 1, d), "attn_pool.q.weight": draw(d, d)}
    for i in range(shape.layers):
        b = f"blocks.{i}."
        sizes = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (m, d), "mlp.fc2": (d, m)}
        for name, size in sizes.items():
            state |= {f"{b}{name}.weight": draw(*size), f"{b}{name}.bias": draw(size[0])}
        for name in ("norm1", "norm2"):
            state |= {f"{b}{name}.weight": 1 + draw(d), f"{b}{name}.bias": draw(d)}
        if dino:
            state |= {f"{b}ls1.gamma": draw(d), f"{b}ls2.gamma": draw(d)}
    return state


def timm_features(state: State, x: Tensor, shape: TowerShape, dino: bool) -> Tensor:
    """What timm's `get_intermediate_layers(x, n={depth - 2})` gives, written out from its definition: output of the
    last block but one, prefix tokens dropped, no final norm; exact GELU.
    """
    x = (
        F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=shape.patch)
        .flatten(2)
        .transpose(1, 2)
    )
    x = x + state["pos_embed"]
    prefix = 0
    if dino:  # no_embed_class: class and register tokens come after the positions
        x = torch.cat([state["cls_token"].expand(len(x), -1, -1), state["reg_token"].expand(len(x), -1, -1), x], dim=1)
        prefix = 1 + REGISTERS
    for i in range(shape.layers - 1):
        b = f"blocks.{i}."
        one = {name[len(b) :]: value for name, value in state.items() if name.startswith(b)}
        h = F.layer_norm(x, x.shape[-1:], one["norm1.weight"], one["norm1.bias"], 1e-6)
        batch, length, width = h.shape
        qkv = F.linear(h, one["attn.qkv.weight"], one["attn.qkv.bias"]).reshape(
            batch, length, 3, shape.heads, width // shape.heads
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (width // shape.heads) ** -0.5).softmax(-1)
        out = F.linear(
            (weights @ v).transpose(1, 2).reshape(batch, length, width), one["attn.proj.weight"], one["attn.proj.bias"]
        )
        x = x + out * one.get("ls1.gamma", torch.ones(()))
        h = F.layer_norm(x, x.shape[-1:], one["norm2.weight"], one["norm2.bias"], 1e-6)
        h = F.linear(
            F.gelu(F.linear(h, one["mlp.fc1.weight"], one["mlp.fc1.bias"])), one["mlp.fc2.weight"], one["mlp.fc2.bias"]
        )
        x = x + h * one.get("ls2.gamma", torch.ones(()))
    return x[:, prefix:]


def test_timm_weights_give_the_features_that_timm_would_give(tmp_path: Path) -> None:
    states = {"dino": timm_weights(DINO, 2, True), "siglip": timm_weights(SIGLIP, 2, False, seed=6)}
    for kind, state in states.items():
        save_file(state, tmp_path / f"{kind}.safetensors")
    dino = towers.import_tower("dino", tmp_path / "dino.safetensors", DINO, SIZE)
    siglip = towers.import_tower("siglip", tmp_path / "siglip.safetensors", SIGLIP, SIZE)
    pixels = torch.randn(3, 6, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = tower_features(dino, siglip, pixels)
        left = timm_features(states["dino"], pixels[:, :3], DINO, True)
        right = timm_features(states["siglip"], pixels[:, 3:], SIGLIP, False)
    assert found.shape == (3, 4, DINO.hidden + SIGLIP.hidden)
    assert torch.allclose(found, torch.cat([left, right], -1), atol=1e-5)
    assert right.abs().mean() > 0.1  # the comparison is of something


def test_the_default_gelu_of_transformers_would_give_other_features() -> None:
    state = towers.siglip_from_timm(timm_weights(SIGLIP, 2, False))
    exact = towers._filled("siglip", dict(state), SIGLIP, SIZE)
    other = towers._filled("siglip", dict(state), SIGLIP, SIZE)
    assert exact.config.hidden_act == "gelu"
    for layer in other.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU(approximate="tanh")
    pixels = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pair = [
            model(pixel_values=pixels, output_hidden_states=True).hidden_states[FEATURE_LAYER]
            for model in (exact, other)
        ]
    assert 1e-5 < (pair[0] - pair[1]).abs().max() < 0.1


def test_a_saved_folder_and_a_hugging_face_folder_give_the_same_towers(tmp_path: Path) -> None:
    dino, siglip = towers.draw_towers(DINO, SIGLIP, SIZE, seed=3)
    towers.save_towers(tmp_path, dino, siglip)
    again = towers.load_towers(tmp_path)
    imported = (
        towers.import_tower("dino", tmp_path / "dino", DINO, SIZE),
        towers.import_tower("siglip", tmp_path / "siglip", SIGLIP, SIZE),
    )
    pixels = torch.randn(2, 6, SIZE, SIZE)
    with torch.no_grad():
        wanted = tower_features(dino, siglip, pixels)
        assert torch.equal(tower_features(*again, pixels), wanted)
        assert torch.equal(tower_features(*imported, pixels), wanted)


def test_positions_are_resampled_once_as_dinov2_does_on_the_fly(tmp_path: Path) -> None:
    """A tower for 48 pixels, imported for 16, sees an image of 16 as the original does when it interpolates at every
    call.
    """
    dino, _ = towers.draw_towers(DINO, SIGLIP, 48, seed=4)
    dino.save_pretrained(tmp_path)
    imported = towers.import_tower("dino", tmp_path, DINO, SIZE)
    assert imported.config.image_size == SIZE
    assert imported.embeddings.position_embeddings.shape == (1, 1 + 4, DINO.hidden)
    pixels = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        on_the_fly = dino(pixel_values=pixels, output_hidden_states=True).hidden_states[FEATURE_LAYER]
        once = imported(pixel_values=pixels, output_hidden_states=True).hidden_states[FEATURE_LAYER]
    assert torch.allclose(on_the_fly, once, atol=1e-5)


def test_positions_of_the_same_grid_are_left_alone() -> None:
    positions = torch.randn(9, 4)
    assert towers.resample_positions(positions, 3) is positions
    assert towers.resample_positions(torch.ones(16, 4), 2).allclose(torch.ones(4, 4))
    with pytest.raises(InputError, match="10 entries is no square grid"):
        towers.resample_positions(torch.zeros(10, 4), 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("blocks.1.mlp.fc1.bias"), r"has no weight 'blocks\.1\.mlp\.fc1\.bias'"),
        (lambda state: state.update({"pos_embed": torch.zeros(1, 5, 16)}), "5 entries is no square grid"),
        (lambda state: [state.pop(k) for k in list(state) if "ls" in k or "token" in k], "holds no timm weights of it"),
        (lambda state: state.update({"blocks.0.mlp.fc1.bias": torch.zeros(3)}), "do not fit the shape that is set"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, damage: object, message: str) -> None:
    state = timm_weights(DINO, 2, True)
    damage(state)  # type: ignore[operator]
    save_file(state, tmp_path / "dino.safetensors")
    with pytest.raises(InputError, match=message):
        towers.import_tower("dino", tmp_path / "dino.safetensors", DINO, SIZE)


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "dino.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"dino: dino\.safetensors cannot be read"):
        towers.import_tower("dino", tmp_path / "dino.safetensors", DINO, SIZE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="siglip: the folder cannot be loaded"):
        towers.import_tower("siglip", tmp_path / "empty", SIGLIP, SIZE)


def test_towers_that_cut_an_image_differently_are_refused() -> None:
    coarse = TowerShape(hidden=24, layers=3, heads=2, intermediate=40, patch=16)
    with pytest.raises(InputError, match="DINOv2 has 4 patches, SigLIP 1"):
        towers.patches(towers.dino_config(DINO, SIZE), towers.siglip_config(coarse, SIZE))
