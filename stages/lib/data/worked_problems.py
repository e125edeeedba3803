"""Problems with worked solutions and exact answers, drawn by chance: what `problems` trains on, and what toy
benchmarks ask.

| kind | problem | solution | answer |
| --- | --- | --- | --- |
| `sum` | Compute 3+5-2. | 3+5=8. 8-2=6. | 6 |
| `product` | Compute 2*4+1. | 2*4=8. 8+1=9. | 9 |
| `columns` | Compute 47+25. | 7+5=12. 4+2+1=7. | 72 |
| `equation` | Solve x+3=8. | x=8-3=5. | 5 |
| `sequence` | What comes next? 2,4,6 | 4-2=2. 6+2=8. | 8 |
| `largest` | Which is the largest? 3,7,5 | 3<7. 7>5. | 7 |

No spaces around signs: in a small vocabulary each would be a token.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Protocol

Draw = tuple[str, str, str]
"""problem, solution, answer"""


class Difficulty(Protocol):
    """How hard problems are. terms: numbers in one, fewest and most; largest: no number is larger."""

    @property
    def terms(self) -> tuple[int, int]: ...

    @property
    def largest(self) -> int: ...


def _chain(total: int, count: int, largest: int, rng: random.Random) -> tuple[str, list[str], int]:
    """(what is appended to the problem, steps, total) of additions and subtractions that stay between 0 and
    `largest`.
    """
    shown, steps = "", []
    for _ in range(count):
        sign = rng.choice("+-")
        term = rng.randint(0, largest - total if sign == "+" else total)
        result = total + term if sign == "+" else total - term
        shown += f"{sign}{term}"
        steps.append(f"{total}{sign}{term}={result}.")
        total = result
    return shown, steps, total


def _sum(kind: Difficulty, rng: random.Random) -> Draw:
    """A chain of additions and subtractions, result by result."""
    first = rng.randint(0, kind.largest)
    shown, steps, total = _chain(first, rng.randint(*kind.terms) - 1, kind.largest, rng)
    return f"Compute {first}{shown}.", " ".join(steps), str(total)


def _product(kind: Difficulty, rng: random.Random) -> Draw:
    """A product, and then additions and subtractions."""
    a = rng.randint(1, kind.largest)
    b = rng.randint(1, kind.largest // a)
    shown, steps, total = _chain(a * b, rng.randint(*kind.terms) - 2, kind.largest, rng)
    return f"Compute {a}*{b}{shown}.", " ".join([f"{a}*{b}={a * b}.", *steps]), str(total)


def _columns(kind: Difficulty, rng: random.Random) -> Draw:
    """A sum or a difference of two numbers of as many digits as `largest` has, digit by digit from the right."""
    least = 10 ** (len(str(kind.largest)) - 1)
    if rng.random() < 0.5 and kind.largest >= 2 * least:
        a = rng.randint(least, kind.largest - least)
        b = rng.randint(least, kind.largest - a)
        return f"Compute {a}+{b}.", " ".join(_added(a, b)), str(a + b)
    a = rng.randint(least, kind.largest)
    b = rng.randint(least, a)
    return f"Compute {a}-{b}.", " ".join(_subtracted(a, b)), str(a - b)


def _added(a: int, b: int) -> Iterator[str]:
    carry = 0
    for x, y in zip(map(int, str(a)[::-1]), map(int, str(b)[::-1]), strict=True):
        yield f"{x}+{y}{'+1' if carry else ''}={x + y + carry}."
        carry = int(x + y + carry > 9)


def _subtracted(a: int, b: int) -> Iterator[str]:
    borrow = 0
    for x, y in zip(map(int, str(a)[::-1]), map(int, str(b)[::-1]), strict=True):
        short = x - y - borrow < 0
        yield f"{x + 10 * short}-{y}{'-1' if borrow else ''}={x + 10 * short - y - borrow}."
        borrow = int(short)


def _equation(kind: Difficulty, rng: random.Random) -> Draw:
    """A linear equation with one unknown: with two numbers x+b=c or x-b=c, with more a*x+b=c."""
    if rng.randint(*kind.terms) == 2:
        x = rng.randint(0, kind.largest)
        if rng.random() < 0.5:
            b = rng.randint(0, kind.largest - x)
            return f"Solve x+{b}={x + b}.", f"x={x + b}-{b}={x}.", str(x)
        b = rng.randint(0, x)
        return f"Solve x-{b}={x - b}.", f"x={x - b}+{b}={x}.", str(x)
    x = rng.randint(1, kind.largest)
    a = rng.randint(1, kind.largest // x)
    b = rng.randint(0, kind.largest - a * x)
    c = a * x + b
    return f"Solve {a}*x+{b}={c}.", f"{a}*x={c}-{b}={a * x}. x={a * x}/{a}={x}.", str(x)


def _sequence(kind: Difficulty, rng: random.Random) -> Draw:
    """The next number of an arithmetic sequence of `terms` numbers."""
    count = rng.randint(*kind.terms)
    step = rng.randint(0, kind.largest // count)
    start = rng.randint(0, kind.largest - step * count)
    numbers = [start + step * n for n in range(count)]
    answer = numbers[-1] + step
    return (
        f"What comes next? {','.join(map(str, numbers))}",
        f"{numbers[1]}-{numbers[0]}={step}. {numbers[-1]}+{step}={answer}.",
        str(answer),
    )


def _largest(kind: Difficulty, rng: random.Random) -> Draw:
    """The largest of some different numbers."""
    numbers = rng.sample(range(kind.largest + 1), min(rng.randint(*kind.terms), kind.largest + 1))
    best, steps = numbers[0], []
    for number in numbers[1:]:
        steps.append(f"{best}{'<' if best < number else '>'}{number}.")
        best = max(best, number)
    return f"Which is the largest? {','.join(map(str, numbers))}", " ".join(steps), str(best)


WORKED_PROBLEMS: dict[str, Callable[[Difficulty, random.Random], Draw]] = {
    "sum": _sum,
    "product": _product,
    "columns": _columns,
    "equation": _equation,
    "sequence": _sequence,
    "largest": _largest,
}
