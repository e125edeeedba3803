"""A folder as others publish a model: config.json, safetensors of bfloat16, and a tokenizer that puts <s> before a
text. Its weights are zeros.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, processors

from stages.lib.formats import vocabulary
from stages.lib.modeling.shape import ModelShape
from stages.lib.outside.models import expected

SHAPE = ModelShape(layers=1, hidden=8, intermediate=16, heads=2, kv_heads=1, head_dim=4, max_positions=512, window=None)
SIZE = 260


def tokenizer(size: int = SIZE) -> Tokenizer:
    """The special and the byte pieces, and letters up to a size."""
    pieces = [*vocabulary.SPECIAL, *vocabulary.byte_tokens()]
    pieces += [chr(ord("a") + number) for number in range(size - len(pieces))]
    model = models.BPE(
        {piece: number for number, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True
    )
    value = Tokenizer(model)
    value.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", vocabulary.BOS_ID)])
    return value


def write(
    folder: Path, pieces: int = SIZE, card: str = "---\nlicense: apache-2.0\n---\n# A model\n", **config: Any
) -> Path:
    """The folder. pieces: of the tokenizer; config: other values of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "model_type": "mistral", "num_hidden_layers": SHAPE.layers, "hidden_size": SHAPE.hidden,
        "intermediate_size": SHAPE.intermediate, "num_attention_heads": SHAPE.heads,
        "num_key_value_heads": SHAPE.kv_heads, "head_dim": SHAPE.head_dim, "sliding_window": None,
        "max_position_embeddings": SHAPE.max_positions, "rms_norm_eps": SHAPE.norm_eps, "vocab_size": SIZE,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values | config))
    (folder / "README.md").write_text(card)
    tokenizer(pieces).save(str(folder / "tokenizer.json"))
    header: dict[str, Any] = {}
    at = 0
    for name, shape in expected(SHAPE, SIZE):
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at := at + 2 * math.prod(shape)]}
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(at))
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    return folder
