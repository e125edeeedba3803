"""Tokenizer folders: how one is written, read, and used so that text never turns into control ids.

Layout of the vocabulary (Llama, Mistral v1, Moxin): <unk> 0, <s> 1, </s> 2, then the 256 byte tokens <0x00>..<0xFF>,
then pieces. A space is written as U+2581 and one is put before the text, as SentencePiece does; bytes without a piece
fall back to byte tokens, so every text can be encoded, and decoding gives it back.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from stages.core.errors import InputError

SPECIAL = ("<unk>", "<s>", "</s>")
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
SPACE = "\u2581"
FILE = "tokenizer.json"


def byte_tokens() -> list[str]:
    """The 256 byte tokens, in order."""
    return [f"<0x{value:02X}>" for value in range(256)]


def metaspace_parts() -> tuple[Any, Any]:
    """Normalizer and decoder of a SentencePiece model with a dummy prefix and byte fallback."""
    normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return normalizer, decoder


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """The same BPE tokenizer, made to give a text's own ids and nothing else, however it is called.

    Merges that spell a special or byte token out of text are dropped: a corpus that holds '</s>' often teaches BPE to
    merge '</' and 's>' into a piece, and that piece already has id 2: the text would end the document. (The vocabulary
    and its size stay.) The post-processor is dropped: one that puts <s> before a text, as Llama's and Mistral's files
    have it, makes prompts begin with a token that packed windows never hold. So are truncation and padding: documents
    are encoded whole.
    """
    reserved = {*SPECIAL, *byte_tokens()}
    value = json.loads(tokenizer.to_str())
    value["truncation"] = value["padding"] = value["post_processor"] = None
    merges = value["model"].get("merges", [])
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if merges:
        value["model"]["merges"] = [m for m, pair in zip(merges, pairs, strict=True) if "".join(pair) not in reserved]
    return Tokenizer.from_str(json.dumps(value))


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that `tokenizers` and transformers both load (no code of ours, nothing pickled)."""
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.save(str(folder / FILE))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> Tokenizer:
    """Read a tokenizer.json under any name. Raises InputError when it is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path.name} is not a tokenizer: {error}") from error


def require_ours(tokenizer: Tokenizer, name: str) -> None:
    """Raise InputError unless others' tokenizer has the special tokens where this pipeline's stages look for them."""
    for token, id in zip(SPECIAL, (UNK_ID, BOS_ID, EOS_ID), strict=True):
        if tokenizer.token_to_id(token) != id:
            raise InputError(f"{name}: '{token}' has id {tokenizer.token_to_id(token)}, this pipeline needs {id}")
    if not isinstance(tokenizer.model, models.BPE):
        kind = type(tokenizer.model).__name__
        raise InputError(f"{name} is a {kind} tokenizer, this pipeline takes BPE: adopt another, or train one")


def load(folder: Path) -> Tokenizer:
    """Load for encoding documents: '</s>' in a text is text, never the end of a document."""
    tokenizer = read(Path(folder) / FILE)
    tokenizer.encode_special_tokens = True
    return tokenizer


def digest(folder: Path) -> str:
    """SHA-256 of the tokenizer's canonical JSON: what the facet `tokenizer_digest` carries."""
    value = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()
