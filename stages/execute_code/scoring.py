"""pass@k by the unbiased estimator of the HumanEval paper (Chen et al. 2021, arXiv:2107.03374, section 2.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pass_at_k(programs: int, right: int, k: int) -> float:
    """The chance that at least one of k programs, drawn from those of a problem, is right: 1 - C(n-c, k) / C(n, k).

    Exact to the last bit: the quotient of two whole numbers. Raises ValueError when there are fewer than k programs.
    """
    if not 0 <= right <= programs or not 1 <= k <= programs:
        raise ValueError(f"pass@{k} of {programs} programs, {right} right")
    all_draws = math.comb(programs, k)
    return (all_draws - math.comb(programs - right, k)) / all_draws


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean over problems, and its standard error (sample deviation / sqrt n); None for a single problem."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean, deviation / math.sqrt(len(values))
