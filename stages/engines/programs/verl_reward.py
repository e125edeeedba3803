"""verl's reward function: this repository's verifier. Loaded by path in verl's reward workers, with the repository on PYTHONPATH.

verl calls it from threads of an executor, where signals cannot bound it; the verifier's own processes can (stages/verifier).
"""

from __future__ import annotations

import atexit
from functools import cache
from typing import Any

from stages.verifier import Verifier, in_format


@cache
def _verifier(rule: Any) -> Verifier:
    """One pool for each rule and worker process."""
    verifier = Verifier(workers=1, rule=rule)
    atexit.register(verifier.close)
    return verifier


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, *, rule: str, right: float, wrong: float, **rest: Any
) -> dict[str, float]:
    """`score` is the reward; `acc` and `format` go into verl's metrics. solution_str: the response without the prompt."""
    accepted = _verifier(rule).verify(solution_str, ground_truth).score
    return {"score": wrong + (right - wrong) * accepted, "acc": accepted, "format": float(in_format(solution_str))}
