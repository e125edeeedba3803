"""`stages.lib.formats.vocabulary`: folders that the libraries load, and text that never becomes a control id."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from stages.core.errors import InputError
from stages.lib.formats import vocabulary

SPECIAL_AND_BYTES = [*vocabulary.SPECIAL, *vocabulary.byte_tokens()]


def small(merges: list[tuple[str, str]] = (), pieces: str = "▁ab</s>unk012x4F") -> Tokenizer:  # type: ignore[assignment]
    """Specials, bytes, some letters, and what the merges make."""
    tokens = [*SPECIAL_AND_BYTES, *dict.fromkeys(pieces), *("".join(pair) for pair in merges)]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    model = models.BPE(vocab=vocab, merges=list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.decoder = vocabulary.metaspace_parts()
    return tokenizer


SPELLING_EOS = [("<", "/"), ("</", "s"), ("</s", ">")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary")
    vocabulary.save(small([("a", "b"), ("▁", "ab")]), path)
    return path


def test_the_byte_tokens_are_256() -> None:
    tokens = vocabulary.byte_tokens()
    assert (len(tokens), tokens[0], tokens[10], tokens[255]) == (256, "<0x00>", "<0x0A>", "<0xFF>")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_every_text_is_covered_and_comes_back(folder: Path, text: str) -> None:
    tokenizer = vocabulary.load(folder)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_literal_space_mark_becomes_a_space(folder: Path) -> None:
    """The one text that does not come back, as in SentencePiece."""
    tokenizer = vocabulary.load(folder)
    assert tokenizer.decode(tokenizer.encode("a▁b", add_special_tokens=False).ids) == "a b"


@given(st.lists(st.sampled_from(["<s>", "</s>", "<unk>", "<0x41>", " ", "a", "<", "/s>"]), max_size=12).map("".join))
def test_special_tokens_in_a_text_are_text(folder: Path, text: str) -> None:
    tokenizer = vocabulary.load(folder)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_merges_that_spell_a_special_token_are_dropped(tmp_path: Path) -> None:
    risky = small(SPELLING_EOS)
    risky.encode_special_tokens = True
    assert vocabulary.EOS_ID in risky.encode("x</s>", add_special_tokens=False).ids  # what the model would do by itself
    safe = vocabulary.plain(risky)
    vocabulary.save(safe, tmp_path)
    loaded = vocabulary.load(tmp_path)
    ids = loaded.encode("x</s>", add_special_tokens=False).ids
    assert not {0, 1, 2} & set(ids)
    assert loaded.decode(ids, skip_special_tokens=False) == "x</s>"
    assert loaded.get_vocab() == risky.get_vocab()


def test_merges_that_spell_a_byte_token_are_dropped() -> None:
    merges = [("<", "0"), ("<0", "x"), ("<0x", "4"), ("<0x4", "F"), ("<0x4F", ">")]
    text = "a<0x4F>"
    assert small(merges).decode(small(merges).encode(text, add_special_tokens=False).ids) == "aO"
    safe = vocabulary.plain(small(merges))
    assert safe.decode(safe.encode(text, add_special_tokens=False).ids) == text


def test_truncation_and_padding_are_taken_out() -> None:
    tokenizer = small()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    plain = vocabulary.plain(tokenizer)
    assert len(plain.encode("ababababab", add_special_tokens=False).ids) == 11


@pytest.mark.slow  # transformers
def test_transformers_loads_the_folder_with_equal_ids(folder: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ours = vocabulary.load(folder)
    for theirs in (PreTrainedTokenizerFast.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)):
        assert (theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
        assert theirs.model_max_length == 32768
        for text in ("ab abba", "  spaces\n\ttabs  ", "größe 中文 🙂", "", "a\x00b"):
            ids = ours.encode(text, add_special_tokens=False).ids
            assert theirs(text, add_special_tokens=True)["input_ids"] == ids
            assert theirs.decode(ids) == text


def test_the_digest_follows_the_content_alone(tmp_path: Path, folder: Path) -> None:
    value = json.loads((folder / vocabulary.FILE).read_text(encoding="utf-8"))
    (tmp_path / vocabulary.FILE).write_text(json.dumps(dict(reversed(value.items()))), encoding="utf-8")
    assert vocabulary.digest(tmp_path) == vocabulary.digest(folder)
    value["model"]["merges"] = value["model"]["merges"][:-1]
    (tmp_path / vocabulary.FILE).write_text(json.dumps(value), encoding="utf-8")
    assert vocabulary.digest(tmp_path) != vocabulary.digest(folder)


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        vocabulary.load(tmp_path)
    (tmp_path / vocabulary.FILE).write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        vocabulary.load(tmp_path)
