r"""DeepScaleR's rule for whether an answer is the reference: two normal forms, and then equality of expressions.
Written anew.

An answer is right when one of these holds (deepscaler/rewards/math_utils of DeepScaleR, which has them from MATH and
PRM800K):

1. MATH's normal form of both is the same string: fractions, roots, units, spacing spelled one way.
2. PRM800K's normal form of both is the same, or part by part (a tuple or interval has parts) they are equal: two
fractions must be the
   same string, unreduced ones are wrong; a whole number must be given as one; anything else must be equal as an
   expression, if it has at most two letters and no large power.

It is as lenient as upstream's where units and words are concerned: a unit at the end is dropped whatever it is
(`5\text{ km}` is `5\text{ m}`), and a word is a product of its letters (`on` is `no`).

Differences, on purpose: no text is evaluated as code (`stages.lib.verifier.algebra`); a fraction of sums keeps its
parentheses (`\frac{1}{x+1}` is `1/(x+1)`, upstream's conversion drops them); only ASCII digits are numbers; functions
other than `sqrt` are compared as text. Qwen's grader (used for Table 7) also accepts a percentage for its fraction and
any bracket for another: not here.
"""

from __future__ import annotations

import re

from stages.lib.verifier import algebra
from stages.lib.verifier.answer_extraction import MAX_CHARACTERS

# --- MATH's normal form -------------------------------------------------------------------------------------------

_TEXT_ALONE = re.compile(r"^\\text\{(?P<text>.+?)\}$")
_DROPPED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "%")


def math_form(answer: str) -> str:
    """MATH's normal form of an answer."""
    text = answer.strip()
    if match := _TEXT_ALONE.match(text):
        text = match["text"].strip()
    for part in _DROPPED:
        text = text.replace(part, "")
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    text = text.split("\\text{ ")[0] if text.count("\\text{ ") == 1 else text  # a unit at the end
    text = re.sub(r"(^|[ {])\.", r"\g<1>0.", text)
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:  # k = 5
        text = sides[1]
    text = re.sub(r"\\sqrt(?![\s{\[])(.)", r"\\sqrt{\1}", text).replace(" ", "")
    text = _whole_fractions(text)
    if text == "0.5":
        return "\\frac{1}{2}"
    return re.sub(r"^(-?[0-9]+)/(-?[0-9]+)$", r"\\frac{\1}{\2}", text)


def _whole_fractions(text: str) -> str:
    r"""`\frac12`, `\frac1{72}` and `\frac{1}2` with both braces."""
    text = re.sub(r"\\frac([0-9a-z])([0-9a-z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([0-9a-z])\{", r"\\frac{\1}{", text)
    return re.sub(r"\\frac(\{[^{}]*\})([0-9a-z])", r"\\frac\1{\2}", text)


# --- PRM800K's normal form ----------------------------------------------------------------------------------------

_UNITS = [
    "degree",
    "cm",
    "centimeter",
    "meter",
    "mile",
    "second",
    "minute",
    "hour",
    "day",
    "week",
    "month",
    "year",
    "foot",
    "feet",
    "inch",
    "yard",
    "liter",
]
_UNIT = re.compile(rf"(?:{'|'.join(_UNITS)})(?:es)?(?:s)? *(?:\^[0-9]+)?")
_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "theta": "θ",
    "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ",
    "varphi": "φ", "psi": "ψ", "omega": "ω",
}  # fmt: skip
_COMMANDS = {
    **_GREEK,
    "pi": "pi", "infty": "inf", "cup": "U", "cdot": "*", "times": "*", "div": "/", "left": "", "right": "", "pm": "±",
    "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "in": "∈", "emptyset": "∅", "cap": "∩",
}  # fmt: skip
_SIMPLE = re.compile(r"[0-9A-Za-z.]*\Z")
MAX_PASSES = 40
"""Nested fractions and roots that are read, from the innermost out."""


def plain_form(answer: str) -> str:
    """PRM800K's normal form of an answer: plain text in which an expression can be parsed."""
    text = answer.strip()
    if match := _TEXT_ALONE.match(text):
        text = match["text"]
    text = text.replace("\\%", "%").replace("\\$", "$").replace("$", "").replace("%", "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, zeros in (("million", 6), ("billion", 9), ("trillion", 12)):
        text = text.replace(word, f"*10^{zeros}")
    text = re.sub(r"\^ *\\circ|\^\{ *\\circ *\}", "", _UNIT.sub("", text)).strip()
    if text[:1] == "{" and text[-1:] == "}":
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    text = re.sub(r"^ *(-?[0-9]+)\.0* *$", r"\1", text)
    if "\\" in text:
        text = _without_latex(text)
    text = re.sub(r"- *", "-", text)
    text = re.sub(r"([0-9]) +([0-9])", r"\1+\2", text)  # 7 3/4
    text = text.replace(" ", "").replace("{", "").replace("}", "").lower()
    return str(int(text.replace(",", ""))) if _is_grouped_integer(text) else text


def _without_latex(text: str) -> str:
    r"""LaTeX as text: `\frac{a}{b}` as a/b, `\sqrt{a}` as sqrt(a), Greek letters as such, other commands dropped."""
    text = _whole_fractions(re.sub(r"\\[dt]frac", r"\\frac", text))
    text = re.sub(r"\\(?:[,;:! ]|q?quad)", " ", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf|operatorname|textbf|mbox)\{([^{}]*)\}", r"\1", text)
    for _ in range(MAX_PASSES):
        new = re.sub(r"\\frac *\{([^{}]*)\} *\{([^{}]*)\}", lambda m: f" {_grouped(m[1])}/{_grouped(m[2])}", text)
        new = re.sub(r"\\sqrt *\[([^\[\]{}]*)\] *\{([^{}]*)\}", lambda m: f"({m[2]})^(1/{_grouped(m[1])})", new)
        new = re.sub(r"\\sqrt *\{([^{}]*)\}", r"sqrt(\1)", new)
        new = re.sub(r"\\sqrt *([0-9A-Za-z])", r"sqrt(\1)", new)
        if new == text:
            break
        text = new
    text = re.sub(r"\\([A-Za-z]+)", lambda m: _COMMANDS.get(m[1], ""), text)
    return re.sub(r"\\([{}])", r"\1", text).replace("\\", "").strip()


def _grouped(part: str) -> str:
    """A part of a fraction in parentheses, unless it is one number or name."""
    part = part.strip()
    return part if _SIMPLE.match(part.removeprefix("-")) else f"({part})"


_GROUPED = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)\Z")
MAX_DIGITS = 1000
"""Digits of a whole number that is brought to one form: conversion is quadratic."""


def _is_grouped_integer(text: str) -> bool:
    return len(text) <= MAX_DIGITS and _GROUPED.match(text) is not None


# --- equality -----------------------------------------------------------------------------------------------------

_FRACTION = re.compile(r"-?[0-9]+\.?/0*[1-9][0-9]*\.?\Z")
_BRACKETS = "()[]"
_LARGE_POWER = re.compile(r"\^\{|\^\(|\^[0-9]+\^|\^[0-9][0-9]+|\*\*")
MAX_LETTERS = 2
"""Distinct letters in what is compared as an expression: more is prose (PRM800K)."""


def is_equal(answer: str, reference: str) -> bool:
    """Whether an answer is the reference. Time is not bounded: run it in a worker
    (`stages.lib.verifier.verifier_pool`).
    """
    if not answer.strip() or not reference.strip():
        return False
    if math_form(answer) == math_form(reference):
        return True
    given, expected = plain_form(answer), plain_form(reference)
    if not given or not expected:
        return False
    if given == expected:
        return True
    given_parts, expected_parts = _parts(given), _parts(expected)
    if len(given_parts) != len(expected_parts):
        return False
    if len(expected_parts) > 1 and (given[0], given[-1]) != (expected[0], expected[-1]):  # (1, 2] is not [1, 2]
        return False
    return all(_same(a, b) for a, b in zip(given_parts, expected_parts, strict=True))


def _parts(text: str) -> list[str]:
    """The parts of a tuple, interval or list in brackets; other text is one part."""
    inner = text[1:-1]
    if len(text) > 2 and text[0] in _BRACKETS and text[-1] in _BRACKETS and not any(c in _BRACKETS for c in inner):
        return (
            [part.strip() for part in re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", inner).split(",")]
            if "," in inner
            else [text]
        )
    return [text]


def _same(given: str, expected: str) -> bool:
    if _FRACTION.match(given) and _FRACTION.match(expected):
        return given == expected
    if _is_grouped_integer(given) != _is_grouped_integer(expected):
        return False
    return (
        _may_compare(given)
        and _may_compare(expected)
        and _letters(given + expected) <= MAX_LETTERS
        and _equal(given, expected)
    )


def _equal(given: str, expected: str) -> bool:
    try:
        return algebra.equal(given, expected)
    except algebra.Unsupported:
        return False


def _letters(text: str) -> int:
    return len({c for c in text.replace("sqrt", "").replace("frac", "") if c.isalpha()})


def _may_compare(text: str) -> bool:
    return _letters(text) <= MAX_LETTERS and not _LARGE_POWER.search(text)


def is_gradable(answer: str) -> bool:
    """DeepScaleR's filter of its problems: whether an answer's normal form may be compared as an expression."""
    text = plain_form(answer) if len(answer) <= MAX_CHARACTERS else ""
    return bool(text) and _may_compare(text)
