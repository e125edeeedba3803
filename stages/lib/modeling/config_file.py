"""What a model's config.json says of it: its shape, read without a tensor library."""

from __future__ import annotations

from pathlib import Path

from stages.core.errors import InputError
from stages.core.json_text import parsed_json
from stages.lib.modeling.shape import ModelShape

ARCHITECTURE = "MistralForCausalLM"


def read_shape(folder: Path) -> tuple[ModelShape, int]:
    """Shape and vocabulary size of a model folder. Raises InputError when it is no Mistral-like model."""
    try:
        config = parsed_json((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") != "mistral":
            raise InputError(f"config.json: model_type is '{config.get('model_type')}', this pipeline trains 'mistral'")
        if config.get("tie_word_embeddings"):
            raise InputError(
                "config.json: tie_word_embeddings is true, this pipeline's models have an output head of their own:"
                " untie it first"
            )
        rope = config.get("rope_parameters") or {}
        shape = ModelShape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            window=config.get("sliding_window"),
            max_positions=config["max_position_embeddings"],
            rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
            norm_eps=config["rms_norm_eps"],
        )
        return shape, int(config["vocab_size"])
    except KeyError as error:
        raise InputError(f"config.json of the model has no {error}") from error
    except (OSError, AttributeError, TypeError, ValueError, ArithmeticError) as error:  # 0 heads, 1e999 pieces
        raise InputError(f"config.json of the model cannot be used: {' '.join(str(error).split())}") from error
