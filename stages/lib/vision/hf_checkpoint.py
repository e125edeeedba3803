"""A vision-language model as a folder: built from a base model, written, read. Nothing in a folder is ever run.

The folder is an ordinary Hugging Face one (config.json, safetensors, tokenizer, preprocessor_config.json, card). For
people without this repository a copy of `modeling_moxin_vlm.py` lies in it (`auto_map`); `load` uses the module
instead.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core.json_text import parsed_json

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched, whatever a folder's configuration names

import torch
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM
from transformers.utils import logging as transformers_logging

from stages.core.errors import InputError
from stages.lib.formats import vocabulary
from stages.lib.modeling.loading import refuse_incomplete
from stages.lib.modeling.weights import Part, StoredWeights, whole
from stages.lib.vision import modeling_moxin_vlm as modeling
from stages.lib.vision.modeling_moxin_vlm import FusedProjector, MoxinVLM, MoxinVLMConfig

PAD, IMAGE = "<PAD>", "<image>"
MODULE = Path(modeling.__file__)


def quiet() -> None:
    """No progress bars and no advice of transformers among the log lines."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def outline(base: Path, dino: Any, siglip: Any, rows: int, towers: bool = False) -> MoxinVLM:
    """A model around a base model's decoder, on the device `meta`: what has values already is no weight.

    dino, siglip: configurations of the towers. rows: of the embedding.
    """
    quiet()
    text = _base_config(base)
    entries, text.vocab_size = text.vocab_size, rows
    dino, siglip = (
        copy.deepcopy(dino),
        copy.deepcopy(siglip),
    )  # transformers changes what it is given, and the towers read theirs
    config = MoxinVLMConfig(
        text_config=text, dino_config=dino, siglip_config=siglip, image_token_id=entries + 1,
        bos_token_id=vocabulary.BOS_ID, eos_token_id=vocabulary.EOS_ID, pad_token_id=entries,
    )  # fmt: skip
    with torch.device("meta"):
        model = MoxinVLM(config, towers=towers)
    decoder: Any = model.language_model.model
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config.text_config)
    return model


def _base_config(base: Path) -> Any:
    """A base model's configuration, for float32 and without dropout. Raises InputError."""
    try:
        return MistralConfig.from_pretrained(
            base,
            local_files_only=True,
            attention_dropout=0.0,
            dtype=torch.float32,
            architectures=["MistralForCausalLM"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the base model cannot be loaded: {str(error).splitlines()[0]}") from error


class FirstWeights:
    """What a model begins with (`stages.lib.modeling.weights.Weights`): the base's decoder, rows of the embedding
    beyond the base's that are its mean row, so they are neither likely nor unlikely, and a projector that is drawn by
    the seed, as PyTorch initializes linear layers.
    """

    def __init__(self, base: Path, model: MoxinVLM, seed: int) -> None:
        """model: its outline."""
        config = _base_config(base)
        self._entries = config.vocab_size
        with torch.device("meta"):
            decoder = MistralForCausalLM(config)
        self._stored = StoredWeights(base).require(decoder)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            projector = FusedProjector(model.config.feature_width, config.hidden_size)
        self._projector = {name: parameter.detach() for name, parameter in projector.named_parameters()}

    def __call__(self, name: str, shape: Sequence[int], part: Part) -> Tensor:
        module, _, rest = name.partition(".")
        if module == "projector":
            return self._projector[rest][part]
        if rest not in ("model.embed_tokens.weight", "lm_head.weight"):
            return self._stored(rest, shape, part)
        rows, columns = part
        stored = (self._entries, *shape[1:])
        of_base = self._stored(rest, stored, (slice(rows.start, min(rows.stop, self._entries)), columns))
        added = rows.stop - rows.start - len(of_base)
        if not added:
            return of_base
        mean = self._stored(rest, stored, whole(stored)).mean(0, keepdim=True)[:, columns]
        return torch.cat([of_base, mean.expand(added, -1)])


def save_tokenizer(base: Path, folder: Path) -> None:
    """The base's tokenizer with `<PAD>` and `<image>` as its last entries."""
    tokenizer = vocabulary.read(base / vocabulary.FILE)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, IMAGE)])
    tokenizer.save(str(folder / vocabulary.FILE))
    try:
        config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer_config.json of the base model cannot be read: {error}") from error
    config |= {"pad_token": PAD, "padding_side": "left", "extra_special_tokens": {"image_token": IMAGE}}
    _write(folder / "tokenizer_config.json", config)


def save_beside(model: MoxinVLM, folder: Path, base: Path, card: str) -> None:
    """Write what a model's folder holds beside weights. model: its outline will do."""
    name = MODULE.stem
    model.config.auto_map = {"AutoConfig": f"{name}.MoxinVLMConfig", "AutoModelForImageTextToText": f"{name}.MoxinVLM"}
    model.config.architectures = ["MoxinVLM"]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    model.generation_config.pad_token_id = model.config.pad_token_id
    model.generation_config.save_pretrained(folder)
    for file in ("config.json", "generation_config.json"):
        _write(folder / file, _without_origin(json.loads((folder / file).read_text(encoding="utf-8"))))
    shutil.copyfile(MODULE, folder / MODULE.name)
    save_tokenizer(base, folder)
    towers = {
        "dino": {"image_mean": modeling.IMAGENET_MEAN, "image_std": modeling.IMAGENET_STD},
        "siglip": {"image_mean": modeling.SIGLIP_MEAN, "image_std": modeling.SIGLIP_STD},
    }
    resize = {
        "size": model.config.siglip_config.image_size,
        "strategy": model.config.image_resize_strategy,
        "resample": "bicubic",
    }
    _write(folder / "preprocessor_config.json", {"resize": resize, "normalize": towers})
    (folder / "README.md").write_text(card, encoding="utf-8")


def _without_origin(config: Any) -> Any:
    """A configuration without `_name_or_path`: transformers puts there the folder of this machine that a part came
    from, and the same model would have other bytes elsewhere.
    """
    if not isinstance(config, dict):
        return config
    return {key: _without_origin(value) for key, value in config.items() if key != "_name_or_path"}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[MoxinVLM, Tokenizer]:
    """Model in evaluation mode, and tokenizer (text never becomes a control id). Raises InputError; runs no code of the
    folder.
    """
    quiet()
    try:
        kind = parsed_json((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"config.json of the model cannot be read: {' '.join(str(error).split())}") from error
    if kind != MoxinVLMConfig.model_type:
        raise InputError(
            f"config.json: model_type is '{kind}', a vision-language model of this pipeline is"
            f" '{MoxinVLMConfig.model_type}'"
        )
    try:
        loaded: Any = MoxinVLM.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
        model, report = loaded
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the model cannot be loaded: {str(error).splitlines()[0]}") from error
    refuse_incomplete(report, "the vision-language model's folder")
    return model.eval(), vocabulary.load(folder)
