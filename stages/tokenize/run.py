"""Run `tokenize`: encode each input by shard, take each stream's share, cut windows, shuffle, write shards.

Every document is its pieces and then </s>; no <s> (Mistral's tokenizer would add one, but in packed windows </s> alone
marks the boundary). What does not fill the last window is left out, and counted. Which documents are taken is decided
by a hash of their id (hash_sampling.py), never by their order: any budget is a uniform sample of the source, and
disjoint ranges share nothing. Another hash of the id holds documents out, so that the windows of every length and phase
keep the same ones out; theirs lie in `heldout/`.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.lib.data.workers import Pool, Result
from stages.lib.formats import vocabulary
from stages.lib.formats.corpus import shards_of
from stages.lib.formats.shards import dtype_for, shard_name, write_index
from stages.tokenize import hash_sampling, packing
from stages.tokenize.encoder import encode, held_out
from stages.tokenize.spec import Tokenize, TokenizeConfig
from stages.tokenize.streams import Encoded, Stream

__all__ = ["held_out", "run"]


@dataclass(frozen=True)
class Source:
    """One input, encoded: what its shards left."""

    number: int
    node: str
    results: list[Result]
    benchmarks: tuple[str, ...]

    def total(self, part: str, what: str) -> int:
        """Documents, bytes or tokens of `train` or `heldout`."""
        return sum(result.value[part][what] for result in self.results)

    def stream(self, pool: Pool, part: str, take: int) -> Stream:
        """`take` ids: all, repeated where there are fewer; the last pass takes the documents with the lowest places."""
        files = [
            Encoded(result.file(part), result.value[part]["tokens"], result.file("documents"))
            for result in self.results
            if result.value[part]["tokens"]
        ]
        total = self.total(part, "tokens")
        rest, cut = take % total if total else 0, None
        if rest and part == "train":
            documents = [file.documents for file in files if file.documents is not None]
            cut = hash_sampling.cut(pool, f"cut-{self.number}", documents, rest)
        return Stream(files, take, cut)


def run(ctx: Context[TokenizeConfig]) -> None:
    """Write the shards."""
    config = ctx.config
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if config.threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(config.threads)
    tokenizer = ctx.input("tokenizer")
    size = int(tokenizer.facets["vocab_size"])
    dtype = np.dtype(dtype_for(size))
    inputs = ctx.inputs("documents")
    if config.weights is not None and (
        len(config.weights) != len(inputs) or min(config.weights) < 0 or not sum(config.weights)
    ):
        raise ConfigError(
            f"{ctx.node}.weights = {list(config.weights)}: give one weight of 0 or more for each of "
            f"{', '.join(s.node for s in inputs)}, not all 0"
        )
    if config.draw is not None and len(config.draw) != len(inputs):
        raise ConfigError(
            f"{ctx.node}.draw has {len(config.draw)} ranges: give one for each of {', '.join(s.node for s in inputs)}"
        )
    digest = str(tokenizer.facets["tokenizer_digest"])
    with Pool.of(ctx, Tokenize.resources(config)) as pool:
        sources = _encode(ctx, pool, dtype)
        takes = _shares(ctx, [s.total("train", "tokens") for s in sources])
        total = sum(takes)
        count = total // config.sequence_length
        if count == 0:
            raise InputError(
                f"{ctx.node}: {total} tokens are fewer than one window of {config.sequence_length}: bring more text"
            )
        streams = [source.stream(pool, "train", take) for source, take in zip(sources, takes, strict=True)]
        rows = [_row(source, take) for source, take in zip(sources, takes, strict=True)]
        _write(ctx, pool, "train", "", streams, size, digest, sources=rows)
        heldout = _write_heldout(ctx, pool, sources, size, digest)
    facets = {
        "tokenizer_digest": digest,
        "vocab_size": size,
        "sequence_length": config.sequence_length,
        "dtype": dtype.name,
    }
    used = count * config.sequence_length
    benchmarks = sorted({name for s in sources for name in s.benchmarks})
    ctx.describe("shards", facets=facets, meta={"windows": count, "tokens": used, "benchmarks": benchmarks})
    ctx.stat(
        windows=count,
        tokens=used,
        heldout_windows=heldout,
        dropped_tail_tokens=total - used,
        sources=rows,
        encoded=[_encoded(source) for source in sources],
        funnel=_funnel(sources, takes),
    )


def _row(source: Source, take: int) -> dict[str, Any]:
    """What the index says of a source. of_the_whole: epochs of all that it has, drawn or not, to be added up over the
    phases.
    """
    tokens = source.total("train", "tokens")
    apart, here = source.total("apart", "bytes"), source.total("train", "bytes")
    epochs = take / tokens if tokens else 0.0
    share = here / (here + apart) if here else 0.0
    return {
        "node": source.node,
        "documents": source.total("train", "documents"),
        "tokens": take,
        "epochs": round(epochs, 4),
        "of_the_whole": round(epochs * share, 4),
    }


def _encoded(source: Source) -> dict[str, Any]:
    """What the tokenizer made of a source: documents, their bytes, and their tokens without the </s> of each."""
    count = {
        what: sum(source.total(part, what) for part in ("train", "heldout"))
        for what in ("documents", "bytes", "tokens")
    }
    return {"node": source.node} | count | {"tokens": count["tokens"] - count["documents"]}


def _funnel(sources: list[Source], takes: list[int]) -> dict[str, dict[str, int]]:
    """Documents, bytes and tokens that came in and were held out; tokens that the mixture cut or repeated."""
    rows = {
        reason: {
            what: sum(s.total(part, what) for s in sources for part in parts)
            for what in ("documents", "bytes", "tokens")
        }
        for reason, parts in (
            ("in", ("train", "heldout", "apart")),
            ("not drawn", ("apart",)),
            ("held out", ("heldout",)),
        )
    }
    del rows["not drawn"]["tokens"]  # it is not encoded
    rows["in"]["tokens"] = sum(s.total(part, "tokens") for s in sources for part in ("train", "heldout"))
    have = [s.total("train", "tokens") for s in sources]
    rows["cut by the mixture"] = {"tokens": sum(max(0, n - t) for n, t in zip(have, takes, strict=True))}
    rows["repeated by the mixture"] = {"tokens": sum(max(0, t - n) for n, t in zip(have, takes, strict=True))}
    return rows


def _encode(ctx: Context[TokenizeConfig], pool: Pool, dtype: np.dtype) -> list[Source]:
    """Encode every shard of every input; by the reference encoder when the fast one differs from it anywhere."""
    inputs = ctx.inputs("documents")
    work = [(n, shard) for n, source in enumerate(inputs) for shard in shards_of([source.entries()])]
    (tokenizer,) = ctx.input("tokenizer").entries(vocabulary.FILE)
    common = {"tokenizer": tokenizer.value(), "dtype": dtype.name, "heldout": ctx.config.heldout}
    draw = ctx.config.draw or ((0.0, 1.0),) * len(inputs)
    tasks = [{"shard": asdict(shard), "draw": draw[n], **common} for n, shard in work]
    results = pool.map("encode", encode, [{**task, "fast": True} for task in tasks], ctx.progress)
    if not all(result.value["exact"] for result in results):
        ctx.log(
            "fastokens differs from tokenizers on this corpus: encoding it with tokenizers, which is slower", "warning"
        )
        results = pool.map("encode-reference", encode, [{**task, "fast": False} for task in tasks], ctx.progress)
    return [
        Source(
            n,
            source.node,
            [r for r, (m, _) in zip(results, work, strict=True) if m == n],
            tuple(source.meta.get("benchmarks", ())),
        )
        for n, source in enumerate(inputs)
    ]


def _write(
    ctx: Context[TokenizeConfig],
    pool: Pool,
    name: str,
    under: str,
    streams: list[Stream],
    size: int,
    digest: str,
    **extra: Any,
) -> int:
    """The windows of some streams as shards and an index under a folder of the output; returns how many windows."""
    config, length = ctx.config, ctx.config.sequence_length
    windows = packing.Windows(length, dtype_for(size), size, config.seed + (name == "heldout"))
    shards = packing.shuffle(pool, name, streams, windows, ctx.progress)
    for number, (entry, _) in enumerate(shards):
        ctx.link("shards", f"{under}{shard_name(number)}", entry)
    folder = Path(ctx.output("shards")) / under
    folder.mkdir(exist_ok=True)
    rows = [rows for _, rows in shards]
    write_index(folder, rows, length, size, vocabulary.EOS_ID, digest, **extra)
    return sum(rows)


def _write_heldout(ctx: Context[TokenizeConfig], pool: Pool, sources: list[Source], size: int, digest: str) -> int:
    """The held-out documents as windows of their own, in `heldout/`; returns how many windows."""
    config = ctx.config
    if not config.heldout:
        return 0
    streams = [source.stream(pool, "heldout", source.total("heldout", "tokens")) for source in sources]
    if sum(stream.take for stream in streams) < config.sequence_length:
        ctx.log(f"heldout = {config.heldout}: the documents held out do not fill a window", "warning")
        return 0
    return _write(ctx, pool, "heldout", "heldout/", streams, size, digest)


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
