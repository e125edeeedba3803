"""Comparing two expressions without evaluating text as code: a parser of our own, bounded, whose result sympy then
compares.

sympy's `parse_expr` builds Python source and calls `eval` on it, so what a model writes must never reach it. Here an
expression of numbers, names, `+ - * / ^ !`, `sqrt(..)` and parentheses is parsed by descent into nested tuples; only
those are made into sympy.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

MAX_DEPTH = 60
"""Nesting of parentheses and signs: an answer has a handful; Python's own stack ends at a thousand frames."""
MAX_BITS = 20_000
"""Bits of a number that arithmetic may make: 6,000 digits. 9^9^9^9 has more digits than there are atoms."""
MAX_FACTORIAL = 1000

_TOKEN = re.compile(r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)|(?P<name>[^\W\d_]+)|(?P<sign>\*\*|[-+*/^()!]))")

Tree = tuple[Any, ...]
"""('number', Fraction), ('name', str), ('sqrt' | 'negative' | 'factorial', tree), ('+' | '-' | '*' | '/' | '^', tree,
tree)
"""


class Unsupported(ValueError):
    """The text is no expression of this grammar, or would grow beyond the bounds."""


def equal(left: str, right: str) -> bool:
    """Whether two expressions are the same for all values of their names. Raises Unsupported when one cannot be
    read.
    """
    trees = parse(left), parse(right)
    exact = [_rational(tree) for tree in trees]
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
    import sympy

    difference = _sympy(trees[0]) - _sympy(trees[1])
    return difference == 0 or sympy.simplify(difference) == 0


def parse(text: str) -> Tree:
    """The expression as nested tuples. Juxtaposition multiplies. Raises Unsupported."""
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unsupported(f"no expression: {text[at : at + 20]!r}")
        tokens.append(match)
        at = match.end()
    return _Parser([(m.lastgroup or "", m[m.lastgroup or ""]) for m in tokens]).whole()


class _Parser:
    """Recursive descent: sums of products of powers of atoms."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def whole(self) -> Tree:
        tree = self._sum()
        if self.at < len(self.tokens):
            raise Unsupported(f"unexpected {self.tokens[self.at][1]!r}")
        return tree

    def _peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def _take(self) -> tuple[str, str]:
        if self.at == len(self.tokens):
            raise Unsupported("the expression ends early")
        self.at += 1
        return self.tokens[self.at - 1]

    def _sum(self) -> Tree:
        tree = self._product()
        while self._peek() in ("+", "-"):
            tree = (self._take()[1], tree, self._product())
        return tree

    def _product(self) -> Tree:
        tree = self._signed()
        while True:
            sign = self._peek()
            if sign in ("*", "/"):
                self._take()
                tree = (sign, tree, self._signed())
            elif sign and sign not in ("+", "-", ")", "^", "**", "!"):
                tree = ("*", tree, self._power())
            else:
                return tree

    def _signed(self) -> Tree:
        if self._peek() not in ("+", "-"):
            return self._power()
        self._deeper()
        sign = self._take()[1]
        tree = self._signed()
        self.depth -= 1
        return ("negative", tree) if sign == "-" else tree

    def _power(self) -> Tree:
        tree = self._atom()
        while self._peek() == "!":
            self._take()
            tree = ("factorial", tree)
        if self._peek() in ("^", "**"):
            self._take()
            self._deeper()
            tree = ("^", tree, self._signed())  # to the right: 2^3^2 = 2^9
            self.depth -= 1
        return tree

    def _atom(self) -> Tree:
        kind, text = self._take()
        if kind == "number":
            if len(text) > MAX_BITS // 4:
                raise Unsupported("a number of too many digits")
            return ("number", Fraction(text))
        if kind == "name":
            return self._name(text)
        if text != "(":
            raise Unsupported(f"unexpected {text!r}")
        self._deeper()
        tree = self._sum()
        if self._take()[1] != ")":
            raise Unsupported("an unclosed parenthesis")
        self.depth -= 1
        return tree

    def _name(self, text: str) -> Tree:
        if text == "sqrt":
            return ("sqrt", self._atom())
        if text == "pi":
            return ("name", text)
        tree: Tree = ("name", text[0])
        for letter in text[1:]:  # xy is x times y
            tree = ("*", tree, ("name", letter))
        return tree

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported("nested too deeply")


def _rational(tree: Tree) -> Fraction | None:
    """The exact value, or None when the expression has names or roots. Raises Unsupported when it grows too large."""
    kind = tree[0]
    if kind == "number":
        return tree[1]
    if kind in ("name", "sqrt"):
        return None
    parts = [_rational(part) for part in tree[1:]]
    if parts[0] is None or parts[-1] is None:
        return None
    return _apply(kind, parts[0], parts[-1])


def _apply(kind: str, a: Fraction, b: Fraction) -> Fraction | None:
    if kind == "negative":
        return -a
    if kind == "factorial":
        return Fraction(math.factorial(_factorial_of(a)))
    if kind == "^":
        if b.denominator != 1:
            return None
        _check_power(a, b)
        if a == 0 and b < 0:
            raise Unsupported("division by zero")
        return a ** int(b)
    if kind == "/" and b == 0:
        raise Unsupported("division by zero")
    return _small({"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[kind]())


def _factorial_of(a: Fraction) -> int:
    if a.denominator != 1 or not 0 <= a <= MAX_FACTORIAL:
        raise Unsupported("a factorial that is too large, or of no natural number")
    return int(a)


def _check_power(a: Fraction, b: Fraction) -> None:
    bits = max(abs(a.numerator), a.denominator).bit_length()
    if abs(b) * bits > MAX_BITS:
        raise Unsupported("a power that is too large")


def _small(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator).bit_length() > MAX_BITS:
        raise Unsupported("a number that is too large")
    return value


def _sympy(tree: Tree) -> Any:
    """The tree as a sympy expression; numbers are exact, every power of numbers is bounded before it is made."""
    import sympy

    if (value := _rational(tree)) is not None:
        return sympy.Rational(value.numerator, value.denominator)
    kind = tree[0]
    if kind == "name":
        return sympy.pi if tree[1] == "pi" else sympy.Symbol(tree[1])
    parts = [_sympy(part) for part in tree[1:]]
    if kind == "sqrt":
        return sympy.sqrt(parts[0])
    if kind == "negative":
        return -parts[0]
    if kind == "factorial":
        raise Unsupported("a factorial of no natural number")
    a, b = parts
    if kind == "^":
        exponent = Fraction(int(b.p), int(b.q)) if b.is_Rational else None
        if exponent is None or abs(exponent) > MAX_DEPTH:  # (x + 1)^60 can be compared, x^x^x cannot
            raise Unsupported("a power that is too large, or not of a number")
        return a**b
    return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[kind]()
