"""RefinedWeb's rules: each breaks on the page made for it, and on no other; lines that go are the right ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import ConfigError
from stages.ingest import heuristics
from stages.ingest.heuristics import cleaned
from tests.support.raw_pages import PROSE as PAGE
from tests.support.raw_pages import prose

WORDS = PAGE.split()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PAGE, None),
        (" ".join(WORDS[:50]), None),
        (" ".join(WORDS[:49]), "too few words"),
        ("ab " * 100_001, "too many words"),
        (" ".join(["of"] * 30 + [f"a{n % 10}" for n in range(40)]), "word length"),
        (" ".join(w * 3 for w in WORDS), "word length"),
        (" ".join([*WORDS, *["#"] * (len(WORDS) // 8)]), "symbols"),
        ("\n".join("- " + line for line in PAGE.split("\n")), "bullets"),
        ("\n".join(line + "..." if n % 2 else line for n, line in enumerate(PAGE.split("\n"))), "ellipses"),
        (" ".join([*WORDS, *[f"{n:04d}" for n in range(len(WORDS) // 3)]]), "words without letters"),
        (" ".join(w for w in WORDS if w.lower() not in heuristics.STOP_WORDS), "stop words"),
        ("\n".join(PAGE.split("\n")[:6] * 2 + PAGE.split("\n")[6:]), "repeated lines"),
        ("\n\n".join([PAGE, prose(1, 2), prose(1, 2)]), "repeated paragraphs"),
        (PAGE.replace("The ", "The quite unbelievably "), "a repeated n-gram"),
        (" ".join(WORDS[:60] + WORDS[100:130] + WORDS[60:100] + WORDS[100:130]), "repeated n-grams"),
        ("http://example.com/page www.example.org", "no text but addresses"),
        (
            "\n".join(line.upper() if n % 4 == 0 else line for n, line in enumerate(PAGE.split("\n"))),
            "too many bad lines",
        ),
    ],
)
def test_each_rule_has_its_page(text: str, reason: str | None) -> None:
    assert cleaned(text)[1] == reason


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("12,345", []),
        ("3.4K likes", []),
        ("SHOUTED TITLE", []),
        ("Menu", []),
        ("3 items in cart", ["3"]),
        ("and more of it Read more...", ["and more of it"]),
        ("Sign-in to see it all", ["to see it all"]),
        ("An ordinary line of words.", ["An ordinary line of words."]),
        ("", [""]),
    ],
)
def test_lines_that_go(line: str, left: list[str]) -> None:
    assert heuristics._lines(line) == left


def test_a_few_bad_lines_are_cut_out_of_a_page() -> None:
    assert cleaned(f"MENU\n{PAGE}\n7 comments\n\n\n\nThe end of it all, and see http://example.com/x too.") == (
        f"{PAGE}\n\nThe end of it all, and see too.",
        None,
    )


@pytest.mark.parametrize(
    ("text", "counted", "repeated"),
    [
        ("don't stop 3.14 e-mail", ["don't", "stop", "3.14", "e-mail"], ["don't", "stop", "3.14", "e", "mail"]),
        ("(a) b\u00a0c - d", ["b\u00a0c", "d"], ["a", "b", "c", "d"]),
        ("...word _under\tx\x00y", ["x", "y"], ["word", "x", "y"]),
        ("日本語 café", ["日本語", "café"], ["日", "本", "語", "café"]),
    ],
)
def test_words_are_upstreams(text: str, counted: list[str], repeated: list[str]) -> None:
    """The second column is what uniseg 0.10 gives (words that begin with a letter or digit); the first is fastText's
    own.
    """
    assert heuristics.tokens(text) == counted
    assert heuristics.words(text) == repeated


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
    | st.text("ab .\t\n\x0b\x0c\r\0\u00a0-'1", max_size=60)
)
def test_tokens_are_fasttexts(text: str) -> None:
    import fasttext

    assert heuristics.tokens(text) == [token for token in fasttext.FastText.tokenize(text) if token[0].isalnum()]


def naive_repeated(words: list[str], size: int) -> int:
    """Upstream's way: a set of the places of repeated words."""
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    places = {k for i, gram in enumerate(grams) if grams.count(gram) > 1 for k in range(i, i + size)}
    return sum(len(words[k]) for k in places)


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), max_size=30), st.integers(2, 6))
def test_repeated_characters_are_counted_once(words: list[str], size: int) -> None:
    assert heuristics._repeated(words, size) == naive_repeated(words, size)


@given(st.text(max_size=300))
def test_any_text_has_an_answer(text: str) -> None:
    left, reason = cleaned(text)
    assert reason or left


def test_a_language_model_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"language_model = .*none\.bin: no such file"):
        cleaned(PAGE, str(tmp_path / "none.bin"))
    (tmp_path / "bad.bin").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=r"bad\.bin: no fastText model"):
        cleaned(PAGE, str(tmp_path / "bad.bin"))
