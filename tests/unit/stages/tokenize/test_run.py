"""The `tokenize` stage: windows hold the documents' text, each ended by </s>, and nothing else decides their order."""

from __future__ import annotations

import hashlib
import random
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models

from stages.core.artifacts import Documents, Tokenizer
from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats import vocabulary
from stages.lib.formats.documents import write_documents
from stages.tokenize.encoder import RESERVED, Encoder
from stages.tokenize.packing import window_keys
from stages.tokenize.run import held_out, run
from stages.tokenize.spec import Tokenize, TokenizeConfig
from tests.support.examples import max_examples
from tests.support.token_shards import opened

EOS = vocabulary.EOS_ID
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)
TRICKY = st.lists(st.sampled_from(["</s>", "<s>", "<unk>", "<0x41>", " ", "\n", "ab", "🙂", "é"]), max_size=8).map(
    "".join
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    folder = tmp_path_factory.mktemp("tokenizer")
    merges = [("a", "b"), ("▁", "ab"), ("<", "/"), ("</", "s"), ("</s", ">")]
    pieces = [*vocabulary.SPECIAL, *vocabulary.byte_tokens(), *"▁abcde</s>", *("".join(m) for m in merges)]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    library = Library(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer, library.decoder = vocabulary.metaspace_parts()
    vocabulary.save(vocabulary.plain(library), folder)
    facets = {"tokenizer_digest": vocabulary.digest(folder), "vocab_size": library.get_vocab_size()}
    return local_artifact(Tokenizer, folder, facets)


def window_order(count: int, seed: int) -> np.ndarray:
    """The order in which windows are written: that of their keys."""
    return np.argsort(window_keys(0, count, seed), kind="stable")


def documents(folder: Path, texts: list[str], prefix: str = "d", **meta: Any) -> LocalArtifact:
    folder.mkdir(parents=True)
    write_documents(folder, ({"id": f"{prefix}{n}", "text": t, "source": "s"} for n, t in enumerate(texts)))
    return local_artifact(Documents, folder, meta=meta)


def tokenize(root: Path, tokenizer: LocalArtifact, *corpora: list[str], **config: Any) -> LocalContext[TokenizeConfig]:
    sources = [documents(root / f"in-{n}", texts, f"{n}-") for n, texts in enumerate(corpora)]
    inputs = {"documents": sources, "tokenizer": [tokenizer]}
    ctx = LocalContext(root, TokenizeConfig(**{"threads": 1, **config}), inputs)
    run(ctx)
    return ctx


def ids_of(folder: Path, seed: int = 1) -> list[int]:
    """All ids in stream order: the shuffle of the windows undone."""
    shards = opened(folder)
    order = window_order(len(shards), seed)
    rows: list[Any] = [None] * len(shards)
    for window, ids in zip(order, shards.windows(np.arange(len(shards))), strict=True):
        rows[window] = ids
    return np.concatenate(rows).tolist()


def texts_of(ids: list[int], tokenizer: LocalArtifact) -> list[str]:
    """Cut at </s> and decode."""
    library, out, start = vocabulary.load(tokenizer.path), [], 0
    for place, token in enumerate(ids):
        if token == EOS:
            out.append(library.decode(ids[start:place], skip_special_tokens=False))
            start = place + 1
    return out


@max_examples(40)
@given(st.lists(TEXT | TRICKY, min_size=1, max_size=8))
def test_the_windows_decode_to_the_texts(tokenizer: LocalArtifact, texts: list[str]) -> None:
    """Windows of two ids, so that at most one id is dropped; one more document takes the loss."""
    with tempfile.TemporaryDirectory() as folder:
        ctx = tokenize(Path(folder), tokenizer, [*texts, "ab"], sequence_length=2)
        ids = ids_of(ctx.output("shards"))
    assert texts_of(ids, tokenizer)[: len(texts)] == texts
    assert ids.count(EOS) in (len(texts), len(texts) + 1)
    assert not {vocabulary.UNK_ID, vocabulary.BOS_ID} & set(ids)
    assert len(ids) + ctx.stats["dropped_tail_tokens"] == ctx.stats["sources"][0]["tokens"]


def corpus(seed: int, size: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(rng.choices(["ab", "cab", "abba", "bead", "🙂", "deed"], k=rng.randint(1, 30))) for _ in range(size)
    ]


def test_facets_meta_and_counts(tmp_path: Path, tokenizer: LocalArtifact) -> None:
    ctx = tokenize(tmp_path, tokenizer, corpus(1), corpus(2), sequence_length=16)
    size = int(tokenizer.facets["vocab_size"])
    wanted = {
        "tokenizer_digest": tokenizer.facets["tokenizer_digest"],
        "vocab_size": size,
        "sequence_length": 16,
        "dtype": "uint16",
    }
    assert ctx.facets["shards"] == wanted
    assert Tokenize.facets(ctx.config, {"tokenizer": [tokenizer.facets]}) == {"shards": wanted}
    assert ctx.meta["shards"]["tokens"] == 16 * ctx.stats["windows"] == ctx.stats["tokens"]
    assert 0 <= ctx.stats["dropped_tail_tokens"] < 16
    assert [s["documents"] for s in ctx.stats["sources"]] == [60, 60]
    for row, source, texts in zip(ctx.stats["encoded"], ctx.stats["sources"], (corpus(1), corpus(2)), strict=True):
        text = {"documents": 60, "bytes": sum(len(one.encode()) for one in texts)}
        assert row == {"node": source["node"], "tokens": source["tokens"] - 60} | text
    assert len(opened(ctx.output("shards"))) == ctx.stats["windows"]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_input_same_bytes_whatever_the_threads(tmp_path: Path, tokenizer: LocalArtifact) -> None:
    runs = [
        tokenize(tmp_path / str(n), tokenizer, corpus(1), corpus(2), sequence_length=16, heldout=0.2, threads=threads)
        for n, threads in enumerate((1, 1, 4))
    ]
    first = digests(runs[0].output("shards"))
    assert {"heldout/index.json", "index.json", "shard-00000.bin"} <= set(first)
    assert all(digests(other.output("shards")) == first for other in runs[1:])
    other = tokenize(tmp_path / "seed", tokenizer, corpus(1), corpus(2), sequence_length=16, heldout=0.2, seed=2)
    assert digests(other.output("shards"))["shard-00000.bin"] != first["shard-00000.bin"]
    assert sorted(ids_of(other.output("shards"), 2)) == sorted(ids_of(runs[0].output("shards")))
    assert TokenizeConfig(threads=1).identity() == TokenizeConfig(threads=8).identity()


def test_document_ids_follow_the_documents(tmp_path: Path, tokenizer: LocalArtifact) -> None:
    ctx = tokenize(tmp_path, tokenizer, corpus(3), sequence_length=32)
    shards = opened(ctx.output("shards"))
    ids = shards.windows(np.arange(len(shards)))
    for window, found in zip(ids.tolist(), shards.document_ids(ids).tolist(), strict=True):
        seen = 0
        for token, owner in zip(window, found, strict=True):
            assert owner == seen
            seen += token == EOS


def test_weights_set_the_shares(tmp_path: Path, tokenizer: LocalArtifact) -> None:
    """The small input is repeated up to max_epochs, the large one is cut."""
    ctx = tokenize(
        tmp_path, tokenizer, corpus(1, 200), corpus(2, 20), sequence_length=8, weights=(0.5, 0.5), max_epochs=2.0
    )
    large, small = ctx.stats["sources"]
    assert large["tokens"] == small["tokens"]
    assert small["epochs"] == 2.0
    assert large["epochs"] < 0.5
    ids = ids_of(ctx.output("shards"))
    half = ids[large["tokens"] :]
    once = half[: len(half) // 2]
    assert half[len(once) : 2 * len(once)] == once


def test_max_tokens_cuts_every_input_alike(tmp_path: Path, tokenizer: LocalArtifact) -> None:
    whole = tokenize(tmp_path / "whole", tokenizer, corpus(1), corpus(2), sequence_length=8)
    cut = tokenize(tmp_path / "cut", tokenizer, corpus(1), corpus(2), sequence_length=8, max_tokens=400)
    assert 392 <= cut.stats["tokens"] <= 400
    shares = [[s["tokens"] for s in ctx.stats["sources"]] for ctx in (whole, cut)]
    assert shares[1][0] / sum(shares[1]) == pytest.approx(shares[0][0] / sum(shares[0]), abs=0.01)


def test_held_out_documents_are_the_same_at_every_length(tmp_path: Path, tokenizer: LocalArtifact) -> None:
    texts = [f"{t} <{n}>" for n, t in enumerate(corpus(4, 150))]  # each text once
    chosen = [t for n, t in enumerate(texts) if held_out(f"0-{n}", 0.2)]
    assert 15 < len(chosen) < 50
    for length in (4, 16):
        ctx = tokenize(tmp_path / str(length), tokenizer, texts, sequence_length=length, heldout=0.2)
        train = texts_of(ids_of(ctx.output("shards")), tokenizer)
        assert not set(train) & set(chosen)
        assert len(train) >= len(texts) - len(chosen) - 1
        shards = opened(ctx.output("shards") / "heldout")
        assert len(shards) == ctx.stats["heldout_windows"] > 0
        order = window_order(len(shards), 2)
        stream = shards.windows(np.argsort(order)).ravel().tolist()
        assert texts_of(stream, tokenizer) == chosen[: stream.count(EOS)]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 0.98))
def test_held_out_grows_with_the_share(id: str, share: float) -> None:
    assert not held_out(id, 0.0)
    assert held_out(id, share) <= held_out(id, share + 0.01)


def test_too_few_documents_held_out_is_a_warning(tmp_path: Path, tokenizer: LocalArtifact) -> None:
    ctx = tokenize(tmp_path, tokenizer, corpus(1), sequence_length=16, heldout=1e-9)
    assert ctx.stats["heldout_windows"] == 0
    assert not (ctx.output("shards") / "heldout").exists()
    assert any(line.startswith("warning: heldout = 1e-09") for line in ctx.logs)


def test_benchmarks_travel_with_the_tokens(tmp_path: Path, tokenizer: LocalArtifact) -> None:
    inputs = {
        "documents": [
            documents(tmp_path / "a", corpus(1), benchmarks=["mmlu", "hellaswag"]),
            documents(tmp_path / "b", corpus(2), "x", benchmarks=["mmlu"]),
        ],
        "tokenizer": [tokenizer],
    }
    ctx = LocalContext(tmp_path, TokenizeConfig(sequence_length=8, threads=1), inputs)
    run(ctx)
    assert ctx.meta["shards"]["benchmarks"] == ["hellaswag", "mmlu"]


@pytest.mark.parametrize(
    ("corpora", "config", "error", "says"),
    [
        ([[]], {}, InputError, "test: the corpus is empty: its inputs hold no document"),
        ([["ab"]], {"sequence_length": 500}, InputError, "tokens are fewer than one window of 500: bring more text"),
        (
            [["ab"], ["ab"]],
            {"weights": (1.0,)},
            ConfigError,
            r"test\.weights = \[1\.0\]: give one weight of 0 or more for each",
        ),
        ([["ab"]], {"weights": (0.0,)}, ConfigError, "not all 0"),
        ([["ab"], ["ab"]], {"weights": (2.0, -1.0)}, ConfigError, "give one weight of 0 or more"),
        ([["ab"], []], {"weights": (0.5, 0.5)}, InputError, "is empty, but weights ask for it"),
    ],
)
def test_what_cannot_work_is_named(
    tmp_path: Path,
    tokenizer: LocalArtifact,
    corpora: list[list[str]],
    config: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        tokenize(tmp_path, tokenizer, *corpora, **config)


# --- which documents are taken
# --------------------------------------------------------------------------------------------


def named(count: int, prefix: str) -> list[str]:
    """Texts that are told apart, of some ten tokens each."""
    return [f"{prefix}{n} ab cab" for n in range(count)]


def taken(root: Path, tokenizer: LocalArtifact, *corpora: list[str], **config: Any) -> list[str]:
    """The texts of whole documents in the windows."""
    return texts_of(
        ids_of(tokenize(root, tokenizer, *corpora, sequence_length=2, **config).output("shards")), tokenizer
    )


def test_disjoint_ranges_share_no_document_and_together_take_every_one(
    tmp_path: Path, tokenizer: LocalArtifact
) -> None:
    texts, edges = named(400, "a"), (0.0, 0.1, 0.55, 0.9, 1.0)
    parts = [taken(tmp_path / str(n), tokenizer, texts, draw=(pair,)) for n, pair in enumerate(pairwise(edges))]
    assert all(not set(a) & set(b) for n, a in enumerate(parts) for b in parts[n + 1 :])
    missing = set(texts).difference(*parts)
    assert len(missing) <= len(parts), "a window's tail may cut one document off each part"
    for part, (first, end) in zip(parts, pairwise(edges), strict=True):
        assert abs(len(part) - 400 * (end - first)) < 5 * (400 * (end - first)) ** 0.5


def test_any_budget_is_a_uniform_sample_and_a_larger_one_holds_the_smaller(
    tmp_path: Path, tokenizer: LocalArtifact
) -> None:
    """Ten 'languages' one after another in the source, as the Stack's: chi-squared of their shares, 5 sigma."""
    texts = [f"{chr(97 + n // 200)}{n} ab cab" for n in range(2000)]
    before: set[str] = set()
    for budget in (2000, 5000, 12_000):
        found = taken(tmp_path / str(budget), tokenizer, texts, max_tokens=budget)
        assert len(before - set(found)) <= 1, "the document that a budget ends in"
        before = set(found)
        counts = np.bincount([ord(text[0]) - 97 for text in found if text in set(texts)], minlength=10)
        expected = counts.sum() / 10
        chi = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi - 9) < 5 * 18**0.5, counts


def test_what_is_taken_does_not_depend_on_the_order_of_the_source(tmp_path: Path, tokenizer: LocalArtifact) -> None:
    rows = [{"id": f"d{n}", "text": f"{n} ab", "source": "s"} for n in range(300)]
    found = []
    for name, order in (("as", rows), ("turned", rows[::-1])):
        folder = tmp_path / name / "in"
        folder.mkdir(parents=True)
        write_documents(folder, order)
        ctx = LocalContext(
            tmp_path / name,
            TokenizeConfig(threads=1, sequence_length=2, max_tokens=600),
            {"documents": [local_artifact(Documents, folder)], "tokenizer": [tokenizer]},
        )
        run(ctx)
        found.append(set(texts_of(ids_of(ctx.output("shards")), tokenizer)))
    assert len(found[0] ^ found[1]) <= 4, "the documents at both ends of the stream may be cut"
    assert len(found[0]) > 60


def test_what_is_held_out_and_what_is_drawn_are_decided_apart(tmp_path: Path, tokenizer: LocalArtifact) -> None:
    ctx = tokenize(tmp_path, tokenizer, corpus(1, 400), sequence_length=4, heldout=0.25, draw=((0.0, 0.5),))
    funnel = ctx.stats["funnel"]
    assert funnel["in"]["documents"] == 400
    assert 60 < funnel["held out"]["documents"] < 140
    assert 100 < funnel["not drawn"]["documents"] < 200, "half of the 300 that are not held out"
    assert ctx.stats["sources"][0]["epochs"] == 1.0
    assert 0.35 < ctx.stats["sources"][0]["of_the_whole"] < 0.65


@pytest.mark.parametrize("draw", [((0.5, 0.5),), ((0.2, 1.5),), ((-0.1, 1.0),)])
def test_a_range_that_is_none_is_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match="give two numbers of 0 to 1, the smaller first"):
        TokenizeConfig(draw=draw)


# --- the fast encoder
# ---------------------------------------------------------------------------------------------------


@max_examples(100)
@given(st.lists(TEXT | TRICKY | st.text("ab cd<>/s\n▁0", max_size=30), max_size=6))
def test_the_fast_encoder_gives_the_references_ids(tokenizer: LocalArtifact, texts: list[str]) -> None:
    encoder = Encoder(tokenizer.path)
    assert encoder.fast
    ids, ends = encoder.encode(texts)
    rows = [ids[a:b].tolist() for a, b in pairwise(ends.tolist())]
    library = vocabulary.load(tokenizer.path)
    assert rows == [library.encode(text, add_special_tokens=False).ids for text in texts]
    assert encoder.agrees(texts)


def test_pieces_that_fastokens_would_take_for_tokens_go_to_the_reference() -> None:
    assert all(RESERVED.search(f"a{piece}b") for piece in ("<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"))
    assert not RESERVED.search("<0xff> <S> < s> 0x41")


def test_an_encoder_that_differs_is_noticed_and_not_used(
    tmp_path: Path, tokenizer: LocalArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = tokenize(tmp_path / "right", tokenizer, corpus(1), sequence_length=8)

    def wrong(self: Encoder, texts: Any) -> tuple[np.ndarray, np.ndarray]:
        ids, ends = self.reference(texts)
        return ids[::-1].copy(), ends

    monkeypatch.setattr(Encoder, "_encode_fast", wrong)
    ctx = tokenize(tmp_path / "wrong", tokenizer, corpus(1), sequence_length=8)
    assert ctx.logs == [
        "warning: fastokens differs from tokenizers on this corpus: encoding it with tokenizers, which is slower"
    ]
    assert digests(ctx.output("shards")) == digests(right.output("shards"))


def test_without_fastokens_the_result_is_the_same(
    tmp_path: Path, tokenizer: LocalArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = tokenize(tmp_path / "right", tokenizer, corpus(1), sequence_length=8)
    monkeypatch.setitem(sys.modules, "fastokens", None)
    assert not Encoder(tokenizer.path).fast
    assert digests(tokenize(tmp_path / "slow", tokenizer, corpus(1), sequence_length=8).output("shards")) == digests(
        right.output("shards")
    )


@pytest.mark.slow  # processes of their own
def test_two_workers_write_the_same(tmp_path: Path, tokenizer: LocalArtifact) -> None:
    runs = [
        tokenize(tmp_path / str(n), tokenizer, corpus(1), corpus(2), sequence_length=16, heldout=0.2, workers=n)
        for n in (1, 2)
    ]
    assert digests(runs[0].output("shards")) == digests(runs[1].output("shards"))
    assert runs[0].stats == runs[1].stats
    funnel = runs[0].stats["funnel"]
    assert funnel["in"]["documents"] == 120
    assert (
        funnel["in"]["tokens"] - funnel["held out"]["tokens"]
        == runs[0].stats["tokens"] + runs[0].stats["dropped_tail_tokens"]
    )
