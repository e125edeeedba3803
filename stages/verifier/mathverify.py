"""The rule of math-verify, on the answer alone, without its timeouts: the worker's limits stand in for them.

math-verify's own timeouts are alarms, which only work in a main thread. Only its LaTeX extraction is used: it parses by grammar
(latex2sympy2_extended on ANTLR). The other one hands runs of digits and operators to sympy's `parse_expr`, which evaluates code.
"""

from __future__ import annotations

import logging
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off: here they are meant to be

TARGETS = (LatexExtractionConfig(boxed_match_priority=0),)


def is_equal(answer: str, reference: str) -> bool:
    """Whether math-verify takes an answer for the reference. Time is not bounded: run it in a worker."""
    return _equal(_parsed(answer), _parsed(reference))


def is_equal_mathematics(answer: str, reference: str) -> bool:
    """As `is_equal`, but what cannot be read as mathematics equals nothing: math-verify else compares it as text."""
    return _equal(*([part for part in _parsed(text) if not isinstance(part, str)] for text in (answer, reference)))


def _equal(given: list[Any], wanted: list[Any]) -> bool:
    return bool(wanted and given and verify(wanted, given, timeout_seconds=0))


def _parsed(answer: str) -> list[Any]:
    return parse(f"\\boxed{{{answer}}}", extraction_config=TARGETS, parsing_timeout=0)
