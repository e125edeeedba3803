"""Answers a second and core: the verifier's rules in its workers, beside the same rules and math-verify called in this
process.

    python -m benchmarks.verifier [--answers 600] [--json FILE]

Every way judges the same responses: varied answers in six spellings, a sixth of them wrong. The rate is by processor
time of all processes, so it is one core's; `wall` is by the clock, with one worker. "repeated" judges them a second
time, as a group's answers repeat.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.lib.verifier import Rule, Verifier, after_thought, last_boxed
from stages.lib.verifier.fork_server import WARM

Pair = tuple[str, str]


@dataclass(frozen=True)
class Rate:
    """One way of judging. per_core: answers a second of processor; wall: answers a second by the clock."""

    way: str
    per_core: float
    wall: float
    right: int


def responses(count: int, seed: int = 1) -> list[Pair]:
    """(response, reference): integers, fractions, roots, polynomials, tuples and units; every sixth answer is wrong."""
    rng = random.Random(seed)
    out = []
    for number in range(count):
        a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 9)
        off = number % 6 == 5
        answer, reference = (
            (f"{1000 * a + b + off:,}", str(1000 * a + b)),
            (rf"\frac{{{a * c + off}}}{{{7 * c + 1}}}", f"{a * c}/{7 * c + 1}"),
            (rf"{c}\sqrt{{{b + off}}}", rf"\sqrt{{{c * c * b}}}"),
            (f"{a}x+{b + off}", f"{b}+{a}x"),
            (rf"\left({a}, \frac{{{b}}}{{{101 + off}}}\right)", rf"({a}, \frac{{{b}}}{{101}})"),
            (rf"{a + off}\text{{ cm}}", str(a)),
        )[number // 6 % 6]
        thought = " ".join(f"Step {n}: {a} and {b} make {a + b}." for n in range(40))
        out.append((f"<think>\n{thought}\n</think>\n\nThe answer is \\boxed{{{answer}}}.", reference))
    return out


def processor_seconds() -> float:
    """Processor time of this process and of the children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def measure(
    way: str, pairs: Sequence[Pair], judge: Callable[[Sequence[Pair]], Sequence[float]], close: Callable[[], None]
) -> Rate:
    """Judge all pairs; `close` ends child processes, so that their time is counted."""
    cpu, wall = processor_seconds(), time.monotonic()
    scores = judge(pairs)
    wall = time.monotonic() - wall
    close()
    cpu = processor_seconds() - cpu
    return Rate(way, round(len(pairs) / cpu, 1), round(len(pairs) / wall, 1), int(sum(scores)))


def in_workers(rule: Rule, pairs: Sequence[Pair]) -> list[Rate]:
    """The pool with one worker: first judgement, then the same again. What the server costs to start is measured by
    itself.
    """
    start = processor_seconds()
    empty = Verifier(rule=rule)
    empty.accepts([("1", "1")])
    empty.close()
    start = processor_seconds() - start
    verifier = Verifier(rule=rule)
    verifier.accepts([("1", "1")])

    def judge(some: Sequence[Pair]) -> list[float]:
        return [verdict.score for verdict in verifier.verify_many(some)]

    first = measure(f"{rule}, in workers", pairs, judge, verifier.close)
    cpu = len(pairs) / first.per_core - start
    again = measure(f"{rule}, in workers, repeated", pairs, judge, verifier.close)
    return [Rate(first.way, round(len(pairs) / cpu, 1), first.wall, first.right), again]


def in_process(way: str, equal: Callable[[str, str], bool], pairs: Sequence[Pair]) -> Rate:
    """A rule called directly, as upstream calls it: no limits, no protection."""

    def judge(some: Sequence[Pair]) -> list[float]:
        return [
            float(equal(last_boxed(after_thought(response) or "") or "", reference)) for response, reference in some
        ]

    for pair in WARM:  # as the workers' server does
        equal(*pair)
    return measure(way, pairs, judge, lambda: None)


def whole_response(response: str, reference: str) -> bool:
    """math-verify on the whole response, as its README shows it."""
    from math_verify import parse, verify

    return bool(verify(parse(f"\\boxed{{{reference}}}"), parse(response)))


def main() -> None:
    """Print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--answers", type=int, default=600)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from stages.lib.verifier.deepscaler_rule import is_equal as by_deepscaler
    from stages.lib.verifier.math_verify_rule import is_equal as by_math_verify

    pairs = responses(options.answers)
    rates = [
        *in_workers("deepscaler", pairs),
        in_process("DeepScaleR's rule, in this process", by_deepscaler, pairs),
        *in_workers("math-verify", pairs),
        in_process("math-verify, in this process, boxed answer", by_math_verify, pairs),
        measure(
            "math-verify, in this process, whole response",
            pairs,
            lambda some: [float(whole_response(*p)) for p in some],
            lambda: None,
        ),
    ]
    print(f"| way | answers/s/core | answers/s by the clock | right of {len(pairs)} |\n| --- | ---: | ---: | ---: |")
    for rate in rates:
        print(f"| {rate.way} | {rate.per_core:,.0f} | {rate.wall:,.0f} | {rate.right} |")
    if options.json:
        options.json.write_text(json.dumps([asdict(rate) for rate in rates], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
