"""Run `tokenize`: encode each input into a stream on disk, take each stream's share, cut windows, shuffle, write shards.

Every document is its pieces and then </s>; no <s> (Mistral's tokenizer would add one, but in packed windows </s> alone
marks the boundary). What does not fill the last window is left out, and counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import vocabulary
from stages.core.contracts import ConfigError, Context, InputError
from stages.documents import read_batches
from stages.shards import ShardWriter, dtype_for
from stages.tokenize.spec import TokenizeConfig

WRITE_ROWS = 4096


@dataclass(frozen=True)
class Stream:
    """The tokens of one input, on disk."""

    node: str
    path: Path
    tokens: int
    documents: int


def run(ctx: Context[TokenizeConfig]) -> None:
    """Write the shards."""
    config = ctx.config
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if config.threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(config.threads)
    tokenizer = ctx.input("tokenizer")
    size = int(tokenizer.facets["vocab_size"])
    dtype = np.dtype(dtype_for(size))
    sources = ctx.inputs("documents")
    if config.weights is not None and (len(config.weights) != len(sources) or min(config.weights) < 0 or not sum(config.weights)):
        raise ConfigError(
            f"{ctx.node}.weights = {list(config.weights)}: give one weight of 0 or more for each of "
            f"{', '.join(s.node for s in sources)}, not all 0"
        )
    streams = [_encode(ctx, i, source.path, source.node, tokenizer.path, dtype) for i, source in enumerate(sources)]
    takes = _shares(ctx, [s.tokens for s in streams])
    total = sum(takes)
    windows = total // config.sequence_length
    if windows == 0:
        raise InputError(f"{ctx.node}: {total} tokens are fewer than one window of {config.sequence_length}: bring more text")
    packed = _pack(ctx, streams, takes, dtype)
    order = np.random.default_rng(config.seed).permutation(windows)
    digest = str(tokenizer.facets["tokenizer_digest"])
    with ShardWriter(ctx.output("shards"), config.sequence_length, size, vocabulary.EOS_ID, digest) as writer:
        for start in range(0, windows, WRITE_ROWS):
            writer.add(packed[order[start : start + WRITE_ROWS]])
        writer.extra["sources"] = [
            {"node": s.node, "documents": s.documents, "tokens": t, "epochs": round(t / s.tokens, 4) if s.tokens else 0.0}
            for s, t in zip(streams, takes, strict=True)
        ]
    facets = {"tokenizer_digest": digest, "vocab_size": size, "sequence_length": config.sequence_length, "dtype": dtype.name}
    used = windows * config.sequence_length
    ctx.describe("shards", facets=facets, meta={"windows": windows, "tokens": used})
    ctx.stat(windows=windows, tokens=used, dropped_tail_tokens=total - used, sources=writer.extra["sources"])


def _encode(ctx: Context[TokenizeConfig], index: int, folder: Path, node: str, tokenizer_folder: Path, dtype: np.dtype) -> Stream:
    """Encode one input to a file of ids, a batch of documents at a time."""
    tokenizer = vocabulary.load(tokenizer_folder)
    path = Path(ctx.scratch) / f"stream-{index}.bin"
    tokens = documents = 0
    with open(path, "wb") as stream:
        for batch in read_batches(folder, columns=["text"], rows=256):
            encoded = tokenizer.encode_batch_fast(batch.column(0).to_pylist(), add_special_tokens=False)
            ids = np.fromiter(_with_ends(e.ids for e in encoded), dtype)
            stream.write(ids.tobytes())
            tokens, documents = tokens + len(ids), documents + len(encoded)
            ctx.progress(documents, unit="documents")
    return Stream(node, path, tokens, documents)


def _with_ends(rows: Iterator[list[int]]) -> Iterator[int]:
    for row in rows:
        yield from row
        yield vocabulary.EOS_ID


def _shares(ctx: Context[TokenizeConfig], available: list[int]) -> list[int]:
    """Tokens to take of each stream. With weights, the stream that is shortest for its weight sets the total."""
    config = ctx.config
    if not sum(available):
        raise InputError(f"{ctx.node}: the corpus is empty: its inputs hold no document")
    if config.weights is None:
        takes = [float(n) for n in available]
    else:
        share = [w / sum(config.weights) for w in config.weights]
        empty = [s.node for s, w, n in zip(ctx.inputs("documents"), share, available, strict=True) if w and not n]
        if empty:
            raise InputError(f"{ctx.node}: {', '.join(empty)} is empty, but weights ask for it")
        reach = min(n * config.max_epochs / w for n, w in zip(available, share, strict=True) if w)
        total = min(reach, max(sum(available), max(n / w for n, w in zip(available, share, strict=True) if w)))
        takes = [total * w for w in share]
    if config.max_tokens is not None and sum(takes) > config.max_tokens:
        takes = [n * config.max_tokens / sum(takes) for n in takes]
    return [int(n) for n in takes]


def _pack(ctx: Context[TokenizeConfig], streams: list[Stream], takes: list[int], dtype: np.dtype) -> np.ndarray:
    """The streams one after another, repeated as their share asks, as a memory-mapped [windows, sequence_length]."""
    path = Path(ctx.scratch) / "packed.bin"
    with open(path, "wb") as out:
        for stream, take in zip(streams, takes, strict=True):
            left = take
            while left > 0:
                ids = np.fromfile(stream.path, dtype, count=left) if stream.tokens else np.empty(0, dtype)
                out.write(ids.tobytes())
                left -= len(ids)
    length = ctx.config.sequence_length
    return np.memmap(path, dtype, "r", shape=(sum(takes) // length, length))
