"""Numbers that every evaluation makes of its scores: mean and standard error, pass@k, the mean of a suite.

Sums are exact before they are rounded (`math.fsum`): `sum` rounds otherwise in Python 3.11 than in later ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from stages.lib.formats.reports import Aggregate, Score


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of independent scores, and its standard error (sample deviation / sqrt n); no error of a single one."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean, deviation / math.sqrt(len(values))


def mean_of_means(parts: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    """The plain mean of independent (mean, standard error), and its own; no error when one of them has none."""
    errors = [error for _, error in parts if error is not None]
    error = math.hypot(*errors) / len(parts) if len(errors) == len(parts) else None
    return math.fsum(mean for mean, _ in parts) / len(parts), error


def pass_at_k(answers: int, right: int, k: int) -> float:
    """The chance that at least one of k answers, drawn from those of a problem, is right: 1 - C(n-c, k) / C(n, k), the
    unbiased estimator of the HumanEval paper (Chen et al. 2021, arXiv:2107.03374, section 2.1).

    Exact to the last bit: the quotient of two whole numbers. Raises ValueError when there are fewer than k answers.
    """
    if not 0 <= right <= answers or not 1 <= k <= answers:
        raise ValueError(f"pass@{k} of {answers} answers, {right} right")
    all_draws = math.comb(answers, k)
    return (all_draws - math.comb(answers - right, k)) / all_draws


def aggregates(suites: Iterable[str], scores: Sequence[Score]) -> tuple[Aggregate, ...]:
    """The mean of each suite's headline metrics, as the paper's tables print it; none of a suite without any."""
    means = []
    for suite in suites:
        headlines = [(s.value, s.stderr) for s in scores if s.suite == suite and s.headline]
        if headlines:
            value, error = mean_of_means(headlines)
            means.append(Aggregate(suite=suite, value=value, stderr=error, tasks=len(headlines)))
    return tuple(means)
