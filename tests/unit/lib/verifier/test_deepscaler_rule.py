r"""DeepScaleR's rule: pairs with known verdicts, and that no text of any kind is run, hangs it or breaks it."""

from __future__ import annotations

import contextlib
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.verifier import after_thought, algebra, in_format, last_boxed, math_verify_rule
from stages.lib.verifier.deepscaler_rule import is_equal, is_gradable, math_form, plain_form
from tests.support.examples import max_examples
from tests.support.graded_answers import GOLDEN
from tests.support.limits import HANG


@pytest.mark.parametrize(("answer", "reference", "verdict"), GOLDEN)
def test_golden_pairs(answer: str, reference: str, verdict: bool) -> None:
    assert is_equal(answer, reference) is verdict


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4))
def test_a_fraction_equals_itself_however_it_is_spelled_and_no_other(numerator: int, denominator: int) -> None:
    value = Fraction(numerator, denominator)
    if value.denominator == 1:
        assert is_equal(f"{value.numerator}.0", str(value.numerator))
        assert is_equal(f"{value.numerator:,}", str(value.numerator))
        return
    sign = "-" if value < 0 else ""
    latex = rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    assert is_equal(str(value), latex)
    assert not is_equal(str(value + 1), latex)


@given(st.integers(2, 9), st.integers(1, 9), st.integers(1, 9))
def test_algebra_agrees_with_the_numbers(a: int, b: int, c: int) -> None:
    assert algebra.equal(f"{a}(x+{b})^2-{c}", f"{a}x^2+{2 * a * b}x+{a * b * b - c}")
    assert not algebra.equal(f"{a}(x+{b})^2-{c}", f"{a}x^2+{2 * a * b}x+{a * b * b - c + 1}")
    assert algebra.equal(f"{a}^{b}/{c}+{b}", str(Fraction(a**b, c) + b))
    assert algebra.equal(f"sqrt({a * a * b})", f"{a}*sqrt({b})")
    assert algebra.equal(f"-{a}-{b}--{c}", str(-a - b + c))


HOSTILE = [
    "9^9^9^9",
    "9**9**9**9",
    "(9^99999)!",
    "100000000!",
    "((99!)!)!",
    "(" * 2000 + "1" + ")" * 2000,
    "-" * 3000 + "1",
    "9" * 100_000,
    "1." + "9" * 100_000,
    "x^x^x^x",
    "(x+1)^100000",
    "sqrt(" * 500 + "2" + ")" * 500,
    "__import__('os').system('exit 1')",
    "().__class__.__bases__[0].__subclasses__()",
    "lambda: 0",
    "exec(open)",
    "²³",
    "٣٤",
    "Ⅷ",
    "½",
    "\x00\ud800",
    "1/0",
    "0^(-1)",
    "5!!!!!",
    r"\frac{" * 300 + "1" + "}" * 300,
    r"\frac{1}{" * 200 + "2" + "}" * 200,
    "{" * 1000,
    r"\sqrt[" * 200,
    "\\" * 5000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_refused_at_once(text: str) -> None:
    """Without a worker's limits: the rule's own bounds hold. An answer that is handed to it has 512 characters at
    most.
    """
    started = time.process_time()
    assert not is_equal(text[:512], "7")
    assert not is_equal("7", text[:512])
    is_gradable(text[:512])
    with contextlib.suppress(algebra.Unsupported):
        assert not algebra.equal(text, "x")
    assert time.process_time() - started < HANG, "hostile text takes hours where a bound is missing"


def test_no_text_is_run_as_code(tmp_path: Path) -> None:
    """What sympy's parse_expr would run: this test would find its file."""
    mark = tmp_path / "mark"
    for text in (f"__import__('os').system('touch {mark}')", f"open('{mark}','w')", f"(lambda:open('{mark}','w'))()"):
        assert not is_equal(text, "7")
        with pytest.raises(algebra.Unsupported):
            algebra.equal(text, "7")
    assert not mark.exists()


@max_examples(150)
@given(
    st.text("0123456789xyπ²٣+-*/^!().,{}[]\\ fracsqtext_'\"", max_size=60),
    st.text("0123456789x+-/\\frac{}", max_size=20),
)
def test_any_text_gets_a_verdict(answer: str, reference: str) -> None:
    assert is_equal(answer, reference) in (True, False)
    assert math_form(math_form(answer)) is not None
    assert isinstance(plain_form(answer), str)
    if algebra_reads(answer) and is_gradable(answer):
        assert is_equal(answer, f"  {answer} ")


def algebra_reads(text: str) -> bool:
    try:
        algebra.parse(text)
    except algebra.Unsupported:
        return False
    return True


@pytest.mark.parametrize(
    ("answer", "gradable"),
    [
        ("5", True),
        (r"\frac{1}{2}", True),
        ("(1,2)", True),
        ("x^2+y", True),
        ("a+b+c", False),
        ("Monday morning", False),
        ("2^{10}", False),
        ("2^5", True),
        ("", False),
    ],
)
def test_gradable_answers(answer: str, gradable: bool) -> None:
    assert is_gradable(answer) is gradable


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} or \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\fbox{ 7 }", "7"),
        (r"\boxed 5", None),
        (r"\boxed{5", None),
        (r"\boxed}{5}", None),
        (r"\boxed{}", ""),
        ("5", None),
        (r"\boxed{a{b}c}d}", "a{b}c"),
    ],
)
def test_the_last_box(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


def test_a_megabyte_is_read_in_no_time() -> None:
    started = time.process_time()
    assert not is_gradable("5" * 10**6)
    assert last_boxed(r"\boxed{" + "x" * 10**6 + "}") == "x" * 10**6
    assert last_boxed(r"\boxed{" * 10**5) is None
    assert last_boxed("{" * 10**6 + r"\boxed{1}") == "1"
    assert time.process_time() - started < 1.0


def test_format_is_a_closed_thought_and_a_box_after_it() -> None:
    assert in_format("<think>\nx\n</think>\n\\boxed{4}")
    assert in_format("x</think>\\boxed{4}")  # the opening tag may be part of the prompt
    assert not in_format("<think>\\boxed{4}</think> four")
    assert not in_format("<think>\\boxed{4}")
    assert not in_format("</think>\\boxed{}")
    assert after_thought("a</think>b</think>\\boxed{4}") == "b"  # between the first and the second tag


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),  # both are 0 at six decimals
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", False),
        ("0.0000001", "0", False),
        (r"2^{-99}", r"\frac{1}{2^{99}}", True),
        ("0.0000000001", r"10^{-10}", True),
        ("0.000123", "0.00012345", True),  # three digits are what six decimals give a number of 0.001
        ("0.333333", r"\frac{1}{3}", True),
        ("0.010309", r"\frac{1}{97}", True),
        ("0", "0", True),
        ("x + 1", "1 + x", True),
    ],
)
def test_math_verify_tells_small_numbers_apart(answer: str, reference: str, verdict: bool) -> None:
    assert math_verify_rule.is_equal(answer, reference) is verdict


def test_deepscalers_leniency_is_its_upstreams() -> None:
    """Its own grader says the same (commit 95ef74f): a unit at the end goes, a word is a product of letters."""
    assert is_equal("on", "no")
    assert is_equal(r"5\text{ km}", r"5\text{ m}")
