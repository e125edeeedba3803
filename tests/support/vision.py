"""What the tests of the vision stages share: a tiny base model, tiny towers; their scenes are in `scenes.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models

from stages.core.artifacts import ImageFeatures, Model, VisionTowers
from stages.core.context import LocalArtifact
from stages.core.testing import LocalContext, local_artifact
from stages.image_features.run import run as see
from stages.image_features.spec import ImageFeaturesConfig
from stages.lib.formats import vocabulary
from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.hf_checkpoint import save_model, save_weights
from stages.lib.modeling.shape import ModelShape
from stages.lib.modeling.weights import materialize
from stages.lib.vision import hf_checkpoint
from stages.lib.vision.modeling_moxin_vlm import MoxinVLM
from stages.lib.vision.shape import TowerShape

SHAPE = ModelShape(layers=2, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8, window=48, max_positions=256)
DINO = TowerShape(hidden=16, layers=3, heads=2, intermediate=32, patch=8)
SIGLIP = TowerShape(hidden=24, layers=3, heads=2, intermediate=40, patch=8)
SIZE, PATCHES = 16, 4
FACETS = {
    "architecture": "MistralForCausalLM", "context_length": 256, "dtype": "float32", "chat_template_digest": "none",
    "tokenizer_digest": "d",
}  # fmt: skip


def tokenizer(folder: Path) -> int:
    """Write a tokenizer of characters and a few words; returns its size."""
    words = ["red", "green", "blue", "circle", "square", "the", "True", "False", "Yes", "No", *"ABCDEFGHIJKLMNOP"]
    pieces = [*map(chr, range(32, 127)), "\n", vocabulary.SPACE]
    entries = dict.fromkeys([*vocabulary.SPECIAL, *vocabulary.byte_tokens(), *pieces])
    merges = []
    for word in words:
        text = vocabulary.SPACE + word
        for end in range(2, len(text) + 1):
            entries[text[:end]] = None
            merges.append((text[: end - 1], text[end - 1]))
    ids = {piece: number for number, piece in enumerate(entries)}
    made = Tokenizer(models.BPE(vocab=ids, merges=list(dict.fromkeys(merges)), byte_fallback=True, unk_token="<unk>"))
    made.normalizer, made.decoder = vocabulary.metaspace_parts()
    vocabulary.save(made, folder)
    return made.get_vocab_size()


def whole_model(base: Path, dino: Any, siglip: Any, rows: int, seed: int) -> MoxinVLM:
    """A model in this process, as training begins with it, without its towers. dino, siglip: their configurations."""
    model = hf_checkpoint.outline(base, dino, siglip, rows)
    materialize(model, torch.device("cpu"), hf_checkpoint.FirstWeights(base, model, seed))
    return model


def save_whole(model: MoxinVLM, folder: Path, base: Path, card: str) -> None:
    """Write the folder of a model with its towers."""
    save_weights(model.state_dict(), folder)
    hf_checkpoint.save_beside(model, folder, base, card)


def base_model(root: Path, seed: int = 0) -> LocalArtifact:
    """A base model with drawn weights."""
    (root / "tokenizer").mkdir(parents=True)
    (root / "base").mkdir()
    entries = tokenizer(root / "tokenizer")
    model = MoxinLM(SHAPE, entries)
    model.initialize(seed)
    save_model(model, root / "base", root / "tokenizer", "card")
    return local_artifact(
        Model, root / "base", {**FACETS, "vocab_size": entries}, {"parameters": SHAPE.parameters(entries)}
    )


def features_config(**changes: Any) -> ImageFeaturesConfig:
    """Drawn towers of this module's shapes."""
    values: dict[str, Any] = {
        "origin": "drawn",
        "dino": DINO,
        "siglip": SIGLIP,
        "image_size": SIZE,
        "dtype": "fp32",
        "precision": "fp32",
    }
    return ImageFeaturesConfig(**(values | {"threads": 1, "batch_size": 7} | changes))


def features(root: Path, train: LocalArtifact, **changes: Any) -> tuple[LocalArtifact, LocalArtifact]:
    """Towers, and the features of the training images."""
    ctx = LocalContext(root, features_config(**changes), {"images": [train]})
    see(ctx)
    return (
        local_artifact(VisionTowers, ctx.output("towers"), ctx.facets["towers"], ctx.meta["towers"]),
        local_artifact(ImageFeatures, ctx.output("features"), ctx.facets["features"]),
    )
