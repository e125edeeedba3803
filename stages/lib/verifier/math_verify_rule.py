"""The rule of math-verify, on the answer alone, without its timeouts: the worker's limits stand in for them.

math-verify's own timeouts are alarms, which only work in a main thread. Only its LaTeX extraction is used: it parses by
grammar (latex2sympy2_extended on ANTLR). The other one hands runs of digits and operators to sympy's `parse_expr`,
which evaluates code.
"""

from __future__ import annotations

import logging
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr

logging.getLogger("math_verify").setLevel(
    logging.ERROR
)  # it warns that its timeouts are off: here they are meant to be

TARGETS = (LatexExtractionConfig(boxed_match_priority=0),)


def is_equal(answer: str, reference: str) -> bool:
    """Whether math-verify takes an answer for the reference. Time is not bounded: run it in a worker."""
    return _equal(_parsed(answer), _parsed(reference))


def is_equal_mathematics(answer: str, reference: str) -> bool:
    """As `is_equal`, but what cannot be read as mathematics equals nothing: math-verify else compares it as text."""
    return _equal(*([part for part in _parsed(text) if not isinstance(part, str)] for text in (answer, reference)))


def _equal(given: list[Any], expected: list[Any]) -> bool:
    if not (expected and given and verify(expected, given, timeout_seconds=0)):
        return False
    pairs = [(a, b) for a in given for b in expected if _is_number(a) and _is_number(b)]
    return not pairs or any(_close(a, b) for a, b in pairs)


def _is_number(value: Any) -> bool:
    return isinstance(value, Expr) and value.is_number


SMALL, DIGITS = 1e-3, 5e-3
"""math-verify compares numbers at six decimals, where 1/2^98 and 1/2^99 are both 0. Six decimals give a number of 0.001
three digits: smaller ones must agree in as many.
"""


def _close(given: Expr, expected: Expr) -> bool:
    """Whether a number that math-verify takes for another one is near it, however small both are."""
    a, b = given.evalf(15), expected.evalf(15)
    if not (a.is_comparable and b.is_comparable) or max(abs(a), abs(b)) >= SMALL:
        return True
    return bool(abs(a - b) <= DIGITS * max(abs(a), abs(b)))


def _parsed(answer: str) -> list[Any]:
    return parse(f"\\boxed{{{answer}}}", extraction_config=TARGETS, parsing_timeout=0)
