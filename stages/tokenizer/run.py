"""Run `tokenizer`: train BPE with the `tokenizers` library, or adopt a tokenizer.json or a SentencePiece model."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.core.preflight import require_digest
from stages.lib.data.group_sampling import read_groups, row_groups, spread
from stages.lib.formats import vocabulary
from stages.tokenizer.spec import TokenizerConfig

OVERSAMPLE = 4
"""What is read of a large corpus, in times of the sample: row groups, of which every n-th document is taken."""
LONGEST = 256
"""Characters of the longest word that training looks at whole. Longer ones (base64, DNA, minified code) are cut: the
trainer's time grows with the square of a word, and no piece is longer than `max_piece` anyway.
"""
_SPACE = vocabulary.SPACE
WORDS = rf"{_SPACE}{{0,{LONGEST}}}[^{_SPACE}\s0-9]{{1,{LONGEST}}}|[0-9]|{_SPACE}{{1,{LONGEST}}}|\s{{1,{LONGEST}}}"
"""Within what training may merge: a word with the spaces before it, one digit, a run of spaces, a run of other
whitespace.
"""


def run(ctx: Context[TokenizerConfig]) -> None:
    """Write the tokenizer folder."""
    folder = ctx.output("tokenizer")
    sample = _keep_sample(ctx) if ctx.config.origin == "train" else None
    tokenizer = _adopt(ctx) if sample is None else _train(ctx, sample)
    vocabulary.save(tokenizer, folder)
    size = tokenizer.get_vocab_size()
    ctx.describe("tokenizer", facets={"tokenizer_digest": vocabulary.digest(folder), "vocab_size": size})
    ctx.stat(vocab_size=size, origin=ctx.config.origin, **({} if sample is None else _fertility(folder, sample)))


def _sample(ctx: Context[TokenizerConfig]) -> Iterator[str]:
    """Documents of all inputs in turn, every n-th of row groups all over the corpus, so that it is covered evenly. Of a
    corpus that is not larger than OVERSAMPLE samples, every n-th document of all.
    """
    inputs = ctx.inputs("documents")
    sources = [row_groups(source.entries()) for source in inputs]
    everything = [group for groups in sources for group in groups]
    held = sum(group.size for group in everything)
    text = sum(
        int(source.meta.get("text_bytes") or sum(g.size for g in groups))
        for source, groups in zip(inputs, sources, strict=True)
    )
    if not everything or not text:
        return
    chosen = set(spread([g.size for g in everything], OVERSAMPLE * ctx.config.sample_bytes * held / text))
    share = sum(group.size for n, group in enumerate(everything) if n in chosen) / held
    step, start = max(1, math.ceil(text * share / ctx.config.sample_bytes)), 0
    for groups in sources:
        mine = [group for n, group in enumerate(groups, start) if n in chosen]
        start, index = start + len(groups), 0
        for table in read_groups(mine, ["text"]):
            every = pa.array(range(-index % step, len(table), step), pa.int64())  # of a short one there may be none
            yield from table.column("text").take(every).to_pylist()
            index += len(table)


def _texts(path: Path) -> Iterator[str]:
    """The sample, read from local disk."""
    with pa.memory_map(str(path)) as stream:
        for batch in pa.ipc.open_stream(stream):
            yield from batch.column("text").to_pylist()


def _keep_sample(ctx: Context[TokenizerConfig]) -> Path:
    """Fetch the sample once: training passes over it several times."""
    path = Path(ctx.scratch) / "sample.arrow"
    schema = pa.schema([pa.field("text", pa.large_string())])
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    texts = _sample(ctx)
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_stream(stream, schema, options=options) as writer:
        while batch := list(itertools.islice(texts, 1024)):
            writer.write_batch(pa.record_batch([pa.array(batch, pa.large_string())], schema=schema))
    return path


def alphabet(texts: Iterable[str], size: int) -> list[str]:
    """The `size` commonest characters, ties by code point; the rest is written in bytes.

    The trainer's own choice breaks ties by the order of a hash map with a random seed: two runs, two vocabularies.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.replace(" ", vocabulary.SPACE))
        counts[vocabulary.SPACE] += 1  # the one put before every text
    return [character for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]]


def _train(ctx: Context[TokenizerConfig], sample: Path) -> Tokenizer:
    config = ctx.config
    letters = alphabet(_texts(sample), min(1000, config.vocab_size // 8))
    model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.decoder = vocabulary.metaspace_parts()
    # Split only for training: merges stay within a word and its leading space, or within a run of spaces or newlines,
    # as SentencePiece's do, and no merge touches a digit: a number is its digits, as in Llama's and Mistral's models
    # (split_digits). The saved tokenizer needs no pre-tokenizer, exactly as Llama's has none.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[*vocabulary.SPECIAL, *vocabulary.byte_tokens()],
        max_token_length=config.max_piece,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(sample), trainer)
    if (got := tokenizer.get_vocab_size()) != config.vocab_size:
        raise InputError(
            f"{ctx.node}: the corpus yields {got} pieces, vocab_size asks for {config.vocab_size}: set"
            f" {ctx.node}.vocab_size to {got} or less, or bring more text"
        )
    # byte tokens are pieces, not special tokens: only then does byte fallback decode them
    value = json.loads(tokenizer.to_str())
    value["added_tokens"] = [t for t in value["added_tokens"] if t["content"] in vocabulary.SPECIAL]
    value["pre_tokenizer"] = None
    return vocabulary.plain(Tokenizer.from_str(json.dumps(value)))


def _adopt(ctx: Context[TokenizerConfig]) -> Tokenizer:
    """The tokenizer at `path`, with the ids of its pieces as they are, and nothing around a text: training puts nothing
    there either.
    """
    if not ctx.config.path:
        raise ConfigError(
            f"{ctx.node}.path is unset: name the tokenizer.json, the tokenizer.model or the model folder to adopt"
        )
    path = _file(ctx.node, Path(ctx.config.path))
    require_digest(f"{ctx.node}.path", path, ctx.config.sha256)
    tokenizer = vocabulary.read(path) if path.suffix == ".json" else from_sentencepiece(path)
    vocabulary.require_ours(tokenizer, path.name)
    if (size := tokenizer.get_vocab_size()) != ctx.config.vocab_size:
        raise ConfigError(
            f"{ctx.node}.vocab_size = {ctx.config.vocab_size}, but {path.name} has {size} entries: set"
            f" {ctx.node}.vocab_size = {size}, or adopt the file that was meant"
        )
    return vocabulary.plain(tokenizer)


def _file(node: str, path: Path) -> Path:
    """The file to read. A model's folder has a tokenizer.model, which is the vocabulary as it was trained, or a
    tokenizer.json.
    """
    if not path.exists():
        raise InputError(f"{node}.path: {path} is not there")
    if not path.is_dir():
        return path
    for name in ("tokenizer.model", vocabulary.FILE):
        if (path / name).is_file():
            return path / name
    raise InputError(f"{node}.path: the folder {path} has neither tokenizer.model nor {vocabulary.FILE}")


def from_sentencepiece(path: Path) -> Tokenizer:
    """A `tokenizers` tokenizer that encodes as a SentencePiece BPE model does.

    Merges are ordered by the score of the piece they make, and where scores are equal (Mistral's runs of spaces) by its
    id: shorter runs first, as SentencePiece's leftmost-first rule has it on a run. transformers 5 orders them by id,
    and then splits two in five documents otherwise.
    """
    import sentencepiece

    try:
        source = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path.name} is not a SentencePiece model: {error}") from error
    pieces = {source.id_to_piece(i): i for i in range(source.vocab_size())}
    merges: list[tuple[float, int, int, str, str]] = []
    for piece, index in pieces.items():
        if source.is_byte(index) or source.is_control(index) or source.is_unknown(index):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                merges.append((-source.get_score(index), index, pieces[left], left, right))
    merges.sort()
    model = models.BPE(
        vocab=pieces,
        merges=[(left, right) for _, _, _, left, right in merges],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.decoder = vocabulary.metaspace_parts()
    return tokenizer


def _fertility(folder: Path, sample: Path) -> dict[str, float]:
    """Bytes per token on the first documents of the sample: how well the vocabulary fits."""
    tokenizer = vocabulary.load(folder)
    texts = [text for _, text in zip(range(200), _texts(sample), strict=False)]
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    size = sum(len(t.encode("utf-8", "surrogatepass")) for t in texts)
    return {"bytes_per_token": round(size / max(1, tokens), 3), "sampled_documents": len(texts)}
