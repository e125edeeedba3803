"""Words of a text, plain and compiled: the same ones, whatever the code points; equal hashes for equal words."""

from __future__ import annotations

import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.data.decontamination import ContaminationIndex, words
from stages.lib.data.word_hashes import LETTERED_PLANES, hash_words, reread, same_word, tables
from tests.support.examples import max_examples

TEXT = st.text(
    st.one_of(st.sampled_from("aB ß'-+Σς½é\u0301\u1161각ﬁ\u00a0…™_9"), st.characters(exclude_categories=["Cs"]))
)


def compiled(text: str) -> tuple[list[str], list[int]]:
    """Words as they stand (folded where the text needs Python), and their hashes."""
    data, table = text.encode(), tables()[0]
    for _ in range(2):
        source = np.frombuffer(data, np.uint8)
        space = np.empty(len(data) + 1, np.uint64), np.empty(len(data) + 1, np.int64), np.empty(len(data) + 1, np.int64)
        count, python = hash_words(source, 0, len(source), table, *space)
        if not python:
            found = [data[a:b].decode() for a, b in zip(space[1][:count], space[2][:count], strict=True)]
            return found, space[0][:count].tolist()
        data, table = reread(text), tables()[1]
    raise AssertionError("folded text needs no Python")


def check(text: str) -> None:
    found, hashes = compiled(text)
    plain = words(text)
    assert [word for part in found for word in words(part)] == plain
    assert len(found) == len(plain)
    assert hashes == [compiled(word)[1][0] for word in plain]


def test_every_code_point_is_read_as_python_reads_it() -> None:
    points = [chr(p) for p in range(LETTERED_PLANES) if not 0xD800 <= p < 0xE000]
    for at in range(0, len(points), 4096):
        easy = [c for c in points[at : at + 4096] if not tables()[0][ord(c)] & (1 << 26)]
        hard = [c for c in points[at : at + 4096] if tables()[0][ord(c)] & (1 << 26)]
        text = " ".join(f"x{c}y" for c in easy)
        assert compiled(text)[1] == compiled(" ".join(words(text)))[1]
        for c in hard:
            check(f"x{c}y")
    assert not any(chr(p).isalnum() for p in range(LETTERED_PLANES, sys.maxunicode + 1))


@max_examples(60)
@given(TEXT)
def test_compiled_words_are_pythons(text: str) -> None:
    check(text)


def test_words_are_compared_by_their_letters() -> None:
    one, other = "Straßen GRÖSSE".encode(), "xx größe grösse".encode()
    first, plain = tables()
    left, right = np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)
    assert same_word(left, 9, 16, first, right, 11, 18, plain)
    assert not same_word(left, 9, 16, first, right, 3, 10, plain)
    assert not same_word(left, 9, 15, first, right, 11, 18, plain), "a word's beginning is not the word"


def test_signs_of_arithmetic_are_words_and_other_marks_are_none() -> None:
    assert words("(3 + 4), isn't 7!") == ["3", "+", "4", "isn", "t", "7"]
    assert words("  …\n") == []
    for text in ("a ----- b", "| --- | :--- |", "* * *\n* x", "- a - - b -", "--+--"):
        check(text)
    assert words("a ----- * * b ->-") == ["a", "-", "*", "b", "-", ">", "-"]


def test_an_index_knows_a_run_of_thirteen_words_and_a_short_text_as_a_whole() -> None:
    test = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    index = ContaminationIndex([test, "A short one."])
    assert index.is_contaminated("He said: " + test.upper().replace(" ", ", "))
    assert index.is_contaminated("a SHORT one")
    assert not index.is_contaminated(" ".join(test.split()[:12]))
    assert not ContaminationIndex([]).is_contaminated("")
