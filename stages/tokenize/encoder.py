"""Text into token ids: by fastokens, and by the reference `tokenizers` wherever the two could differ.

fastokens reads a piece such as `<unk>` or `<0x41>` in a text as the token of that name; texts that hold one go to the
reference. On all others it gives the reference's ids, several times as fast; every task compares a sample, and one
difference sends the whole run to the reference.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.core.artifacts import FileEntry
from stages.core.reading import local_file
from stages.lib.formats import vocabulary
from stages.lib.formats.corpus import Shard, read_shard
from stages.lib.formats.documents import text_bytes
from stages.tokenize import hash_sampling

RESERVED = re.compile("|".join(re.escape(piece) for piece in (*vocabulary.SPECIAL, *vocabulary.byte_tokens())))
"""What only the reference takes for text."""
CHECK_FIRST, CHECK_EVERY = 16, 500
"""Documents of each shard that both encoders are compared on: the first, and every n-th."""
CHECK_CHARACTERS = 20_000
"""No longer documents: the reference is slow on them."""


class Encoder:
    """Encodes batches of texts."""

    def __init__(self, folder: Path, fast: bool = True) -> None:
        self._reference = vocabulary.load(folder)
        self._fast = _fastokens(folder) if fast else None

    @property
    def fast(self) -> bool:
        """Whether fastokens does the work."""
        return self._fast is not None

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all texts, uint32; where each begins and the last ends, int64)."""
        slow = [n for n, text in enumerate(texts) if self._fast is None or RESERVED.search(text)]
        if len(slow) == len(texts):
            return self.reference(texts)
        if not slow:
            return self._encode_fast(texts)
        odd = set(slow)
        plain = self._encode_fast([text for n, text in enumerate(texts) if n not in odd])
        rest = self.reference([texts[n] for n in slow])
        parts = {True: iter(_rows(*rest)), False: iter(_rows(*plain))}
        return _joined([next(parts[n in odd]) for n in range(len(texts))])

    def _encode_fast(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        assert self._fast is not None
        ids, ends = self._fast.encode_batch_flat(list(texts), add_special_tokens=False, split_special_tokens=True)
        return np.frombuffer(ids, np.uint32), np.frombuffer(ends, np.uint64).astype(np.int64)

    def reference(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `encode`, by the reference alone."""
        encoded = self._reference.encode_batch_fast(list(texts), add_special_tokens=False)
        return _joined([np.array(e.ids, np.uint32) for e in encoded])

    def agrees(self, texts: Sequence[str]) -> bool:
        """Whether both encoders give the same ids for these texts."""
        texts = [text for text in texts if len(text) <= CHECK_CHARACTERS]
        return all(np.array_equal(a, b) for a, b in zip(self.encode(texts), self.reference(texts), strict=True))


def _fastokens(folder: Path) -> Any | None:
    """fastokens' tokenizer; None where it cannot be had or does not take this one."""
    try:
        import fastokens

        return fastokens.Tokenizer.from_file(str(Path(folder) / vocabulary.FILE))
    except (ImportError, ValueError, RuntimeError):
        return None


def _rows(ids: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    return np.split(ids, ends[1:-1])


def _joined(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    ends = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return (np.concatenate(rows) if rows else np.empty(0, np.uint32)), ends


def with_ends(ids: np.ndarray, ends: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The ids with </s> after each text, in the narrow type, and the ends moved along."""
    documents = len(ends) - 1
    out = np.empty(len(ids) + documents, dtype)
    last = ends[1:] + np.arange(documents)
    text = np.ones(len(out), bool)
    text[last] = False
    out[last] = vocabulary.EOS_ID
    out[text] = ids
    return out, np.concatenate([[0], last + 1])


def held_out(id: str, share: float) -> bool:
    """Whether a document is kept out of training: a hash of its id falls into the first `share` of all values."""
    return (
        share > 0 and int.from_bytes(hashlib.sha256(id.encode("utf-8", "surrogatepass")).digest()[:8]) < share * 2**64
    )


def encode(
    folder: Path,
    shard: dict[str, Any],
    tokenizer: dict[str, Any],
    dtype: str,
    heldout: float,
    draw: Sequence[float],
    fast: bool,
) -> Any:
    """A task: encode a shard's documents that are drawn or held out: `train` and `heldout` hold ids, `documents` what
    drawing needs.

    Returns documents, bytes and tokens of both; documents and bytes of what is not drawn; and whether the encoders
    agreed.
    """
    with local_file(FileEntry.model_validate(tokenizer)) as path:
        encoder = Encoder(path.parent, fast)
    counts = {name: {"documents": 0, "bytes": 0, "tokens": 0} for name in ("train", "heldout", "apart")}
    place, exact = 0, True
    where, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    with open(folder / "train", "wb") as train, open(folder / "heldout", "wb") as apart:
        for batch in read_shard(Shard(**shard), columns=["id", "text"], rows=2048):
            ids = batch.column("id").to_pylist()
            out = np.array([held_out(id, heldout) for id in ids] if heldout else [False] * len(ids), bool)
            place_of = hash_sampling.places(ids)
            taken = hash_sampling.drawn(place_of, draw) | out
            if not taken.all():
                left = batch.filter(pa.array(~taken))
                counts["apart"]["documents"] += len(left)
                counts["apart"]["bytes"] += text_bytes(left.column("text"))
                batch, out, place_of = batch.filter(pa.array(taken)), out[taken], place_of[taken]
            if not len(batch):
                continue
            texts = batch.column("text").to_pylist()
            if encoder.fast and exact:
                exact = encoder.agrees(
                    [t for n, t in enumerate(texts) if place + n < CHECK_FIRST or (place + n) % CHECK_EVERY == 0]
                )
            place += len(texts)
            tokens, ends = with_ends(*encoder.encode(texts), np.dtype(dtype))
            sizes = np.diff(ends)
            whose = np.repeat(out, sizes)
            where.append(place_of[~out])
            lengths.append(sizes[~out])
            for name, stream, documents, part in (("train", train, ~out, ~whose), ("heldout", apart, out, whose)):
                if documents.any():
                    stream.write((tokens if documents.all() else tokens[part]).data)
                    counts[name]["documents"] += int(documents.sum())
                    counts[name]["bytes"] += text_bytes(
                        batch.filter(pa.array(documents)).column("text")
                        if not documents.all()
                        else batch.column("text")
                    )
                    counts[name]["tokens"] += int(part.sum())
    if not heldout:
        (folder / "heldout").unlink()
    hash_sampling.write_rows(folder / "documents", np.concatenate(where), np.concatenate(lengths))
    return {**counts, "exact": exact, "fast": encoder.fast}
