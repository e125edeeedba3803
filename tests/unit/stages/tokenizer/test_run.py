"""The `tokenizer` stage: exact size, fixed ids, the same bytes every time, and adoption that keeps the ids."""

from __future__ import annotations

import itertools
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from pydantic import ValidationError
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from stages.core.artifacts import Documents
from stages.core.errors import ConfigError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.lib.data import group_sampling
from stages.lib.formats import vocabulary
from stages.lib.formats.documents import SCHEMA
from stages.lib.formats.parquet_parts import PartWriter
from stages.tokenize.encoder import Encoder
from stages.tokenizer.run import LONGEST, OVERSAMPLE, WORDS, _sample, alphabet, run
from stages.tokenizer.spec import TokenizerConfig, TrainTokenizer
from tests.support.paths import ROOT
from tests.support.trained_tokenizer import RARE, VOCAB_SIZE, corpus, train, write


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> LocalContext[TokenizerConfig]:
    return train(tmp_path_factory.mktemp("trained"))


def test_size_and_ids_are_exact(trained: LocalContext[TokenizerConfig]) -> None:
    tokenizer = vocabulary.load(trained.output("tokenizer"))
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCAB_SIZE))
    assert [tokenizer.token_to_id(t) for t in vocabulary.SPECIAL] == [0, 1, 2]
    assert [tokenizer.token_to_id(t) for t in vocabulary.byte_tokens()] == list(range(3, 259))
    digest = vocabulary.digest(trained.output("tokenizer"))
    assert trained.facets["tokenizer"] == {"tokenizer_digest": digest, "vocab_size": VOCAB_SIZE}
    assert trained.stats["bytes_per_token"] > 1.5


def test_a_digit_is_always_a_piece_of_its_own(tmp_path: Path) -> None:
    """The corpus repeats '1990' hundreds of times: BPE alone makes pieces of it, Llama's split_digits does not."""
    ctx = train(tmp_path, [*corpus(), *("in 1990 and x1990y, 1990" for _ in range(300))])
    tokenizer = vocabulary.load(ctx.output("tokenizer"))
    pieces = [p for p in tokenizer.get_vocab() if p not in vocabulary.byte_tokens()]
    assert not [p for p in pieces if len(p) > 1 and set(p) & set("0123456789")]
    assert tokenizer.encode("1990 19", add_special_tokens=False).tokens == ["▁", "1", "9", "9", "0", "▁", "1", "9"]


def test_facets_known_before_the_run() -> None:
    assert TrainTokenizer.facets(TokenizerConfig(vocab_size=999), {}) == {"tokenizer": {"vocab_size": 999}}
    assert TrainTokenizer.facets(TokenizerConfig(origin="adopt", path="x", vocab_size=600), {}) == {
        "tokenizer": {"vocab_size": 600}
    }
    with pytest.raises(ValidationError):
        TokenizerConfig(vocab_size=259)


def test_what_looks_like_a_control_token_stays_text(trained: LocalContext[TokenizerConfig]) -> None:
    """The corpus holds '</s>' often: BPE alone merges it into the piece of id 2."""
    tokenizer = vocabulary.load(trained.output("tokenizer"))
    for text in ("x</s>", "</s></s>", "a <s> <unk> </s>", "<0x41>", "</s"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert not {0, 1, 2} & set(ids)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_characters_without_a_piece_fall_back_to_bytes(trained: LocalContext[TokenizerConfig]) -> None:
    tokenizer = vocabulary.load(trained.output("tokenizer"))
    ids = tokenizer.encode("🙂", add_special_tokens=False).ids
    assert ids[-4:] == [3 + byte for byte in "🙂".encode()]
    assert tokenizer.decode(tokenizer.encode(RARE, add_special_tokens=False).ids) == RARE


@pytest.mark.slow  # transformers
def test_transformers_encodes_equally(trained: LocalContext[TokenizerConfig]) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(trained.output("tokenizer"))
    ours = vocabulary.load(trained.output("tokenizer"))
    assert len(theirs) == VOCAB_SIZE
    for text in [text.replace("</s>", "").replace("<s>", "") for text in corpus()[-20:]]:
        assert theirs(text)["input_ids"] == ours.encode(text, add_special_tokens=False).ids


def test_the_alphabet_is_the_commonest_with_ties_by_code_point() -> None:
    assert alphabet(["bb a", "cab"], 3) == ["b", "▁", "a"]
    assert alphabet([RARE], 4) == alphabet([RARE[::-1]], 4) == ["▁", *RARE[:3]]
    assert alphabet([RARE + "zz"], 2) == ["z", "▁"]
    assert alphabet([], 4) == []


@pytest.mark.slow  # processes of their own
def test_training_gives_the_same_bytes_in_any_process(tmp_path: Path, trained: LocalContext[TokenizerConfig]) -> None:
    """The trainer's hash maps have random seeds: its own choice among equally common characters differed each time."""
    wanted = (trained.output("tokenizer") / vocabulary.FILE).read_bytes()
    assert (train(tmp_path / "again").output("tokenizer") / vocabulary.FILE).read_bytes() == wanted
    script = "import sys, pathlib; from tests.support.trained_tokenizer import train\ntrain(pathlib.Path(sys.argv[1]))"
    environment = os.environ | {"PYTHONHASHSEED": "77", "RAYON_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "true"}
    root = ROOT
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "other")], check=True, env=environment, cwd=root)
    other = tmp_path / "other" / "out" / "tokenizer"
    assert (other / vocabulary.FILE).read_bytes() == wanted
    assert sorted(p.name for p in other.iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_sample_covers_the_corpus_evenly(tmp_path: Path) -> None:
    texts = [("abc " * 50) + ("ö" if n % 3 else "") for n in range(90)]
    size = sum(len(t.encode()) for t in texts)
    folder = write(tmp_path / "documents", texts)
    inputs = {"documents": [local_artifact(Documents, folder, meta={"text_bytes": size})]}
    sample = list(_sample(LocalContext(tmp_path, TokenizerConfig(sample_bytes=size // 3 + 1), inputs)))
    assert sample == texts[::3]


def test_of_a_large_corpus_a_few_row_groups_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two sources of 200 row groups some forty: the sample has its size, and comes from every tenth of each."""
    inputs, sizes = [], []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with PartWriter(tmp_path / name, SCHEMA, row_group_bytes=10_000, part_bytes=300_000) as writer:
            for n in range(2000):
                writer.append((f"{n}", f"{name} {n:04d} " + "text " * 100, "s", "", ""), 744)
        sizes.append(2000 * 507)
        inputs.append(local_artifact(Documents, tmp_path / name, meta={"text_bytes": sizes[-1]}))
    read: list[int] = []
    plain = group_sampling.read_group
    monkeypatch.setattr(
        group_sampling, "read_group", lambda group, columns: read.append(group.rows) or plain(group, columns)
    )
    wanted = sum(sizes) // 40
    sample = list(_sample(LocalContext(tmp_path, TokenizerConfig(sample_bytes=wanted), {"documents": inputs})))
    assert abs(sum(map(len, sample)) / wanted - 1) < 0.2
    assert sum(read) < 1.2 * 4000 / 40 * OVERSAMPLE
    assert {(text[0], int(text[2:6]) // 200) for text in sample} == {(s, n) for s in "ab" for n in range(10)}
    assert len(set(sample)) == len(sample)


def test_too_little_text_names_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"the corpus yields \d+ pieces, vocab_size asks for 5000: set test\.vocab_size"
    ):
        train(tmp_path, ["a few words only"], vocab_size=5000)


# --- adoption -------------------------------------------------------------------------------------------------------


def entries(path: Path | None) -> int:
    """How many a vocabulary file has, by its own library; any number where it is none."""
    try:
        if path is not None and (folder := path / "tokenizer.model").is_file():
            path = folder
        if path is not None and path.suffix == ".model":
            return int(sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size())
        return Tokenizer.from_file(str(path / "tokenizer.json" if path and path.is_dir() else path)).get_vocab_size()
    except Exception:
        return 500


def adopt(root: Path, path: Path | None, vocab_size: int | None = None) -> Path:
    folder = write(root / "documents", ["some text </s> to measure"])
    inputs = {"documents": [local_artifact(Documents, folder, meta={"text_bytes": 25})]}
    size = max(301, vocab_size or entries(path))
    config = TokenizerConfig(origin="adopt", path=None if path is None else str(path), vocab_size=size)
    ctx = LocalContext(root, config, inputs)
    run(ctx)
    return ctx.output("tokenizer")


@pytest.mark.parametrize("name", ["tokenizer.json", "mine.json"])
def test_adopting_a_tokenizer_json_keeps_every_id(
    tmp_path: Path, trained: LocalContext[TokenizerConfig], name: str
) -> None:
    source = tmp_path / name
    source.write_bytes((trained.output("tokenizer") / vocabulary.FILE).read_bytes())
    adopted = adopt(tmp_path / "run", source)
    assert vocabulary.digest(adopted) == vocabulary.digest(trained.output("tokenizer"))
    one, other = vocabulary.load(adopted), vocabulary.load(trained.output("tokenizer"))
    assert all(one.encode(t).ids == other.encode(t).ids for t in corpus()[-10:])
    size = one.get_vocab_size()
    with pytest.raises(
        ConfigError, match=rf"vocab_size = {size + 1}, but {name} has {size} entries: set test.vocab_size"
    ):
        adopt(tmp_path / "other", source, size + 1)


def sentencepiece_model(folder: Path, texts: list[str] | None = None) -> None:
    """Train `tokenizer.model` in a folder, normalized as Mistral's is."""
    texts = texts or [t.replace("</s>", "").replace("<s>", "").replace("<0x41>", "") for t in corpus() if t != RARE]
    (folder / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=500,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip


def test_adopting_a_sentencepiece_model_encodes_as_it_does(tmp_path: Path) -> None:
    texts = [t.replace("</s>", "").replace("<s>", "").replace("<0x41>", "") for t in corpus() if t != RARE]
    sentencepiece_model(tmp_path, texts)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = vocabulary.load(adopt(tmp_path / "run", tmp_path / "tokenizer.model"))
    assert ours.get_vocab_size() == reference.vocab_size()
    for text in [*texts[:40], "unseen Größe 🙂", "  two  spaces ", "a </s> b"]:
        assert ours.encode(text, add_special_tokens=False).ids == reference.encode(text)


def with_pieces(model: bytes, pieces: list[str], score: float) -> bytes:
    """A SentencePiece model with more pieces of one score: a repeated protobuf field (1: {1: piece, 2: score}) grows by
    appending.
    """
    for piece in pieces:
        text = piece.encode()
        row = bytes([0x0A, len(text)]) + text + b"\x15" + struct.pack("<f", score)
        model += bytes([0x0A, len(row)]) + row
    return model


def test_runs_of_spaces_are_cut_as_sentencepiece_does(tmp_path: Path) -> None:
    """Mistral v1's runs of spaces, in its order, are all of score -1e9: by score and pieces alone, one document in
    eighteen of technical text came out otherwise.
    """
    texts = [
        " ".join(t.replace("</s>", "").replace("<s>", "").replace("<0x41>", "").split()) for t in corpus() if t != RARE
    ]
    (tmp_path / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "plain"), model_type="bpe", vocab_size=500,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    runs = [vocabulary.SPACE * n for n in (2, 4, 8, 5, 16, 6, 12, 13, 10, 14, 3, 9, 7, 11)]
    (tmp_path / "tokenizer.model").write_bytes(with_pieces((tmp_path / "plain.model").read_bytes(), runs, -1e9))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = vocabulary.load(adopt(tmp_path / "run", tmp_path / "tokenizer.model"))
    for count in range(60):
        for text in (" " * count, f"ab{' ' * count}cd\n{' ' * (count // 2)}x", " " * count + "\n" + " " * count):
            assert ours.encode(text, add_special_tokens=False).ids == reference.encode(text), count


TEXTS = ["", " ", "plain words of text", "  two  spaces ", "unseen Größe 🙂", "lines\n\nand\ttabs", "in 1990"]


def with_prefix(tokenizer: bytes) -> str:
    """A tokenizer.json as Llama's and Mistral's are: a post-processor puts <s> before every text; it cuts and pads,
    too.
    """
    value = json.loads(tokenizer)
    library = Tokenizer.from_str(json.dumps(value))
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    library.enable_truncation(4)
    library.enable_padding(length=8)
    assert library.encode("some words").ids[0] == 1
    return library.to_str()


@pytest.mark.slow  # transformers
@pytest.mark.parametrize("way", ["tokenizer.json", "tokenizer.model", "folder with json", "folder with both"])
def test_the_exported_tokenizer_gives_the_packed_ids(
    tmp_path: Path, trained: LocalContext[TokenizerConfig], way: str
) -> None:
    """However one was adopted: what transformers gives by default is what training saw. A prompt with <s> before it
    never was.
    """
    from transformers import AutoTokenizer

    source = tmp_path / "source"
    source.mkdir()
    if way != "tokenizer.model":
        (source / "tokenizer.json").write_text(
            with_prefix((trained.output("tokenizer") / vocabulary.FILE).read_bytes())
        )
        (source / "tokenizer_config.json").write_text(
            json.dumps({"add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast", "legacy": False})
        )
    if way in ("tokenizer.model", "folder with both"):
        sentencepiece_model(source)
    path = source if way.startswith("folder") else source / way
    exported = adopt(tmp_path / "run", path)
    theirs = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    ids, ends = Encoder(exported).encode(TEXTS)
    packed = [ids[a:b].tolist() for a, b in itertools.pairwise(ends)]
    assert [theirs(text)["input_ids"] for text in TEXTS] == packed
    assert [theirs.encode(text) for text in TEXTS] == packed
    if way in ("tokenizer.model", "folder with both"):
        reference = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
        assert packed == [reference.encode(text) for text in TEXTS]


def test_one_endless_word_does_not_hold_training_up(tmp_path: Path) -> None:
    """A notebook's base64 of 200,000 letters took five minutes. Counted, not timed: no piece of text that is merged is
    longer than the limit.
    """
    endless = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz+/", k=200_000))
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    for text in (endless, " " * 100_000, "\n" * 100_000, f"{' ' * 1000}word"):
        parts = [part for part, _ in split.pre_tokenize_str(text.replace(" ", vocabulary.SPACE))]
        assert "".join(parts).replace(vocabulary.SPACE, " ") == text
        assert max(len(part) for part in parts) <= 2 * LONGEST
    train(tmp_path, [*corpus(), endless])


def test_bad_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"test\.path is unset: name the tokenizer\.json"):
        adopt(tmp_path / "a", None)
    with pytest.raises(InputError, match="is not there"):
        adopt(tmp_path / "b", tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match=r"bad\.json is not a tokenizer"):
        adopt(tmp_path / "c", tmp_path / "bad.json")
    (tmp_path / "bad.model").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"bad\.model is not a SentencePiece model"):
        adopt(tmp_path / "d", tmp_path / "bad.model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has neither tokenizer\.model nor tokenizer\.json"):
        adopt(tmp_path / "f", tmp_path / "empty")
    words = Tokenizer(models.WordLevel(vocab={"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(InputError, match=r"words\.json is a WordLevel tokenizer, this pipeline takes BPE"):
        adopt(tmp_path / "g", tmp_path / "words.json")
    other = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "<unk>": 2}, merges=[], unk_token="<unk>"))
    (tmp_path / "order.json").write_text(json.dumps(json.loads(other.to_str())))
    with pytest.raises(InputError, match=r"order\.json: '<unk>' has id 2, this pipeline needs 0"):
        adopt(tmp_path / "e", tmp_path / "order.json")
