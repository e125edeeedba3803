r"""DeepScaleR's rule: pairs with known verdicts, and that no text of any kind is run, hangs it or breaks it."""

from __future__ import annotations

import contextlib
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.verifier import after_thought, algebra, in_format, last_boxed
from stages.verifier.rule import is_equal, is_gradable, math_form, plain_form

# (answer, reference, verdict) under DeepScaleR's grader: MATH's and PRM800K's normal forms, then equality with its restrictions.
GOLDEN = [
    ("5", "5", True),
    ("5", "6", False),
    ("5.0", "5", True),
    ("05", "5", True),
    ("5.01", "5", False),
    ("1,000", "1000", True),
    ("12,345,678", "12345678", True),
    (r"1{,}000", "1000", True),
    (r"\frac12", r"\frac{1}{2}", True),
    (r"\dfrac{1}{2}", r"\tfrac12", True),
    ("1/2", r"\frac{1}{2}", True),
    ("0.5", r"\frac{1}{2}", True),
    ("0.25", "1/4", True),
    ("2/4", "1/2", False),  # unreduced fractions are wrong
    (r"\frac{6}{4}", r"\frac{3}{2}", False),
    ("4/2", "2", False),  # a whole number must be given as one
    (r"\sqrt{16}", "4", False),
    ("2+3", "5", False),
    ("x+1", "1+x", True),
    ("(x+1)^2", "x^2+2x+1", True),
    ("x^2-1", "(x-1)(x+1)", True),
    ("x+y+z", "z+y+x", False),  # three letters: not compared as expressions
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\sqrt8", r"2\sqrt2", True),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
    (r"2\pi", r"\pi\cdot 2", True),
    (r"\pi", "3.14159", False),
    ("(1,2)", "(1, 2)", True),
    ("(1,2)", "(2,1)", False),
    ("(1,2]", "[1,2]", False),  # Qwen's grader takes any bracket
    ("[1,2)", "[1,2)", True),
    (r"\left(\frac12, 3\right)", r"(\frac{1}{2},3)", True),
    ("(x+1, 2)", "(1+x, 2)", True),
    (r"50\%", "50", True),
    ("0.5", r"50\%", False),  # Qwen's grader takes x, x/100 and 100 x
    ("0.5", "50", False),
    (r"5\text{ cm}", "5", True),
    ("5 inches", "5", True),
    (r"90^\circ", "90", True),
    (r"\$20", "20", True),
    ("x=5", "5", True),
    (r"7\frac{3}{4}", "31/4", True),
    (r"\text{Even}", "even", True),
    ("yes", "no", False),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
    (r"\frac{1}{x+1}", r"\frac{1}{x}+1", False),
    ("10^{10}", "10000000000", False),  # large powers are not evaluated
    ("3 and 4", "3 or 4", True),
    ("2 million", "2000000", False),
    ("5!", "120", False),
    ("0.333", "1/3", False),
    ("", "5", False),
    ("5", "", False),
]


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
    """Without a worker's limits: the rule's own bounds hold. An answer that is handed to it has 512 characters at most."""
    started = time.process_time()
    assert not is_equal(text[:512], "7")
    assert not is_equal("7", text[:512])
    is_gradable(text[:512])
    with contextlib.suppress(algebra.Unsupported):
        assert not algebra.equal(text, "x")
    assert time.process_time() - started < 2.0


def test_no_text_is_run_as_code(tmp_path: Path) -> None:
    """What sympy's parse_expr would run: this test would find its file."""
    mark = tmp_path / "mark"
    for text in (f"__import__('os').system('touch {mark}')", f"open('{mark}','w')", f"(lambda:open('{mark}','w'))()"):
        assert not is_equal(text, "7")
        with pytest.raises(algebra.Unsupported):
            algebra.equal(text, "7")
    assert not mark.exists()


@settings(max_examples=150)
@given(st.text("0123456789xyπ²٣+-*/^!().,{}[]\\ fracsqtext_'\"", max_size=60), st.text("0123456789x+-/\\frac{}", max_size=20))
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
    [("5", True), (r"\frac{1}{2}", True), ("(1,2)", True), ("x^2+y", True), ("a+b+c", False), ("Monday morning", False), ("2^{10}", False), ("2^5", True), ("", False)],
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
