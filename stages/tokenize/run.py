"""Run `tokenize`: encode each input into a stream on disk, take each stream's share, cut windows, shuffle, write shards.

Every document is its pieces and then </s>; no <s> (Mistral's tokenizer would add one, but in packed windows </s> alone
marks the boundary). What does not fill the last window is left out, and counted. Held-out documents are chosen by a hash
of their id, so that the windows of every length and phase keep the same ones out; theirs lie in `heldout/`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import vocabulary
from stages.core.contracts import ConfigError, Context, InputError, LocalArtifact
from stages.documents import read_batches
from stages.shards import ShardWriter, dtype_for
from stages.tokenize.spec import TokenizeConfig

WRITE_ROWS = 4096


@dataclass(frozen=True)
class Stream:
    """The tokens of one input, on disk: those to train on, and those held out."""

    node: str
    path: Path
    tokens: int
    documents: int
    heldout: Path
    heldout_tokens: int
    benchmarks: tuple[str, ...]


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
    streams = [_encode(ctx, i, source, tokenizer.path, dtype) for i, source in enumerate(sources)]
    takes = _shares(ctx, [s.tokens for s in streams])
    total = sum(takes)
    windows = total // config.sequence_length
    if windows == 0:
        raise InputError(f"{ctx.node}: {total} tokens are fewer than one window of {config.sequence_length}: bring more text")
    packed = _pack(ctx, [(s.path, t) for s, t in zip(streams, takes, strict=True)], dtype)
    order = np.random.default_rng(config.seed).permutation(windows)
    digest = str(tokenizer.facets["tokenizer_digest"])
    with ShardWriter(ctx.output("shards"), config.sequence_length, size, vocabulary.EOS_ID, digest) as writer:
        for start in range(0, windows, WRITE_ROWS):
            writer.add(packed[order[start : start + WRITE_ROWS]])
        writer.extra["sources"] = [
            {"node": s.node, "documents": s.documents, "tokens": t, "epochs": round(t / s.tokens, 4) if s.tokens else 0.0}
            for s, t in zip(streams, takes, strict=True)
        ]
    heldout = _write_heldout(ctx, streams, size, digest, dtype)
    facets = {"tokenizer_digest": digest, "vocab_size": size, "sequence_length": config.sequence_length, "dtype": dtype.name}
    used = windows * config.sequence_length
    benchmarks = sorted({name for s in streams for name in s.benchmarks})
    ctx.describe("shards", facets=facets, meta={"windows": windows, "tokens": used, "benchmarks": benchmarks})
    ctx.stat(
        windows=windows,
        tokens=used,
        heldout_windows=heldout,
        dropped_tail_tokens=total - used,
        sources=writer.extra["sources"],
    )


def _write_heldout(ctx: Context[TokenizeConfig], streams: list[Stream], size: int, digest: str, dtype: np.dtype) -> int:
    """The held-out documents as windows of their own, in `heldout/`; returns how many windows."""
    if not ctx.config.heldout:
        return 0
    packed = _pack(ctx, [(s.heldout, s.heldout_tokens) for s in streams], dtype)
    if not len(packed):
        ctx.log(f"heldout = {ctx.config.heldout}: the documents held out do not fill a window", "warning")
        return 0
    order = np.random.default_rng([ctx.config.seed, 1]).permutation(len(packed))
    folder = Path(ctx.output("shards")) / "heldout"
    folder.mkdir()
    with ShardWriter(folder, ctx.config.sequence_length, size, vocabulary.EOS_ID, digest) as writer:
        writer.add(packed[order])
    return len(packed)


def _encode(ctx: Context[TokenizeConfig], index: int, source: LocalArtifact, tokenizer_folder: Path, dtype: np.dtype) -> Stream:
    """Encode one input to files of ids, a batch of documents at a time."""
    tokenizer = vocabulary.load(tokenizer_folder)
    path, heldout = Path(ctx.scratch) / f"stream-{index}.bin", Path(ctx.scratch) / f"heldout-{index}.bin"
    tokens = documents = heldout_tokens = 0
    with open(path, "wb") as stream, open(heldout, "wb") as kept_out:
        for batch in read_batches(source.path, columns=["id", "text"], rows=256):
            encoded = tokenizer.encode_batch_fast(batch.column("text").to_pylist(), add_special_tokens=False)
            out = [held_out(id, ctx.config.heldout) for id in batch.column("id").to_pylist()]
            ids = _ids((e.ids for e, o in zip(encoded, out, strict=True) if not o), dtype)
            stream.write(ids.tobytes())
            if any(out):
                rest = _ids((e.ids for e, o in zip(encoded, out, strict=True) if o), dtype)
                kept_out.write(rest.tobytes())
                heldout_tokens += len(rest)
            tokens, documents = tokens + len(ids), documents + len(encoded) - sum(out)
            ctx.progress(documents, unit="documents")
    benchmarks = tuple(source.meta.get("benchmarks", ()))
    return Stream(source.node, path, tokens, documents, heldout, heldout_tokens, benchmarks)


def held_out(id: str, share: float) -> bool:
    """Whether a document is kept out of training: a hash of its id falls into the first `share` of all values."""
    return share > 0 and int.from_bytes(hashlib.sha256(id.encode("utf-8", "surrogatepass")).digest()[:8]) < share * 2**64


def _ids(rows: Iterator[list[int]], dtype: np.dtype) -> np.ndarray:
    return np.fromiter(_with_ends(rows), dtype)


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


def _pack(ctx: Context[TokenizeConfig], takes: list[tuple[Path, int]], dtype: np.dtype) -> np.ndarray:
    """Streams one after another, each repeated until its share is full, memory-mapped as [windows, sequence_length]."""
    path = Path(ctx.scratch) / "packed.bin"
    path.unlink(missing_ok=True)  # an earlier mapping keeps its own file
    with open(path, "wb") as out:
        for source, take in takes:
            left = take
            while left > 0:
                ids = np.fromfile(source, dtype, count=left)
                out.write(ids.tobytes())
                left -= len(ids)
    length = ctx.config.sequence_length
    windows = sum(take for _, take in takes) // length
    return np.memmap(path, dtype, "r", shape=(windows, length)) if windows else np.empty((0, length), dtype)
