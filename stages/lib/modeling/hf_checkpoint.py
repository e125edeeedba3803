"""A model as an ordinary Hugging Face folder: written and read without importing transformers (7 CPU seconds).

`MistralForCausalLM.from_pretrained(folder)` gives equal logits, by test.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from stages.lib.modeling import weight_files
from stages.lib.modeling.config_file import ARCHITECTURE, read_shape
from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.recompute import Policy
from stages.lib.modeling.shape import ModelShape
from stages.lib.modeling.weights import StoredWeights, materialize

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def config_json(shape: ModelShape, vocab_size: int, dtype: str) -> dict[str, Any]:
    """config.json of the model. Values that transformers 5 would default otherwise are written out.

    `attention_dropout` is 0.0, as Mistral's own: whoever loads the folder and calls `train()` gets what it says, and
    the dropout of a pre-training is a setting of that training (its card has it), not a property of the model.
    """
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "mistral",
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "sliding_window": shape.window,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def save_model(model: MoxinLM, folder: Path, tokenizer: Path, card: str) -> None:
    """Write the whole folder of a model that lies in this process: weights, and what is beside them."""
    dtype = save_weights(model.state_dict(), folder)
    save_beside(folder, config_json(model.shape, model.vocab_size, dtype), tokenizer, card)


def save_beside(folder: Path, config: Mapping[str, Any], tokenizer: Path, card: str) -> None:
    """Write what a model's folder holds beside weights: `config_json`, tokenizer, generation config, card."""
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False})
    _copy(tokenizer, folder, TOKENIZER_FILES)
    (folder / "README.md").write_text(card, encoding="utf-8")


def save_child(state: Mapping[str, torch.Tensor], parent: Path, folder: Path, card: str, chat_template: str) -> None:
    """Write the folder of a model tuned from `parent`: configuration and tokenizer, other weights, a chat template."""
    save_weights(state, folder)
    _copy(parent, folder, ("config.json", "generation_config.json", *TOKENIZER_FILES))
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def save_weights(state: Mapping[str, torch.Tensor], folder: Path) -> str:
    """Write safetensors, in shards above 5 GB, and their index. Returns the name of the weights' type."""
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    shards = split_torch_state_dict_into_shards(tensors, max_shard_size=weight_files.SHARD_SIZE)
    for filename, names in shards.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / filename, metadata={"format": "pt"})
    weight_files.write_index(shards.filename_to_tensors, shards.metadata["total_size"], folder)
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")


def _copy(source: Path, folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_model(folder: Path, dropout: float = 0.0, recompute: Policy = "none") -> MoxinLM:
    """Load a model folder into a MoxinLM, float32 on the CPU."""
    shape, vocab_size = read_shape(folder)
    with torch.device("meta"):
        model = MoxinLM(shape, vocab_size, dropout, recompute)
    materialize(model, torch.device("cpu"), StoredWeights(folder).require(model))
    return model
