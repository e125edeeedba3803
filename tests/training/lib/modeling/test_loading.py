"""A model with weights missing, left over or of another shape is refused wherever one is loaded: transformers would
only print a table.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from stages.core.errors import InputError
from stages.lib.finetuning.model_loading import load_model as tuned_model
from stages.lib.modeling.hf_checkpoint import load_model as pretrained_model
from stages.lib.modeling.loading import refuse_incomplete
from stages.lib.vision import towers
from stages.lib.vision.hf_checkpoint import FirstWeights, outline
from stages.lib.vision.shape import TowerShape
from stages.problems import embedding
from tests.support import tuning

SHAPE = TowerShape(layers=2, hidden=8, intermediate=16, heads=2, patch=7)


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The folder with other weights."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    path.unlink()
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def base(folder: Path) -> Any:
    model = outline(folder, towers.dino_config(SHAPE, 14), towers.siglip_config(SHAPE, 14), rows=tuning.VOCABULARY + 64)
    return FirstWeights(folder, model, seed=0)


CHANGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "missing": (lambda w: w.pop("lm_head.weight"), "lm_head.weight"),
    "left over": (
        lambda w: w.__setitem__("model.layers.9.extra.weight", torch.zeros(2)),
        "model.layers.9.extra.weight",
    ),
}
LOADERS: dict[str, Callable[[Path], Any]] = {
    "pretrain": pretrained_model,
    "tuning": lambda folder: tuned_model(folder, torch.device("cpu")),
    "vision": base,
}


@pytest.mark.parametrize("fault", CHANGES)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_decoder_that_is_not_whole_is_refused(tmp_path: Path, loader: str, fault: str) -> None:
    change, name = CHANGES[fault]
    folder = Path(tuning.parent(tmp_path).path)
    LOADERS[loader](folder)
    with pytest.raises(InputError, match=re.escape(name)):
        LOADERS[loader](changed(folder, change))


@pytest.mark.parametrize("loader", ["pretrain", "tuning"])
def test_tied_embeddings_are_refused(tmp_path: Path, loader: str) -> None:
    folder = Path(tuning.parent(tmp_path).path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(InputError, match="tie_word_embeddings is true"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("kind", ["dino", "siglip"])
def test_a_tower_that_is_not_whole_is_refused(tmp_path: Path, kind: towers.Kind) -> None:
    dino, siglip = towers.draw_towers(SHAPE, SHAPE, 14, seed=0)
    towers.save_towers(tmp_path, dino, siglip)
    towers.import_tower(kind, tmp_path / kind, SHAPE, 14)
    towers.load_towers(tmp_path)
    changed(tmp_path / kind, lambda w: w.pop(next(name for name in sorted(w) if name.endswith("fc1.weight"))))
    with pytest.raises(InputError, match=rf"^{kind}: the folder has no weight .*fc1\.weight"):
        towers.import_tower(kind, tmp_path / kind, SHAPE, 14)
    with pytest.raises(InputError, match=rf"^the tower's folder {kind} has no weight "):
        towers.load_towers(tmp_path)


def test_an_embedding_model_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    BertModel(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(tmp_path)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    changed(tmp_path, lambda w: w.pop("encoder.layer.0.output.dense.weight"))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    with pytest.raises(
        InputError, match=r"^the embedding model .* has no weight encoder\.layer\.0\.output\.dense\.weight"
    ):
        embedding.model(tmp_path)


def test_what_may_be_absent_is_no_fault() -> None:
    info = {"missing_keys": {"pooler.dense.weight"}, "unexpected_keys": ["head.x"], "mismatched_keys": []}
    refuse_incomplete(info, "it", may_lack=r"pooler\.", may_have=r"head\.")
    with pytest.raises(InputError, match=r"^it has no weight pooler\.dense\.weight: nothing is drawn"):
        refuse_incomplete(info, "it")
    with pytest.raises(InputError, match=r"^it has a weight of another shape than its configuration says, a\.b"):
        refuse_incomplete({"mismatched_keys": [("a.b", (1,), (2,))]}, "it")
