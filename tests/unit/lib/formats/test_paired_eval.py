"""Effects: paired differences, their standard errors, and what counts as shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.lib.formats.paired_eval import as_stats, effect, from_stats, ratio
from tests.support.examples import max_examples

values = st.lists(st.floats(-5, 5, allow_nan=False), min_size=2, max_size=30)


@given(values)
@max_examples(60)
def test_equal_weights_give_the_mean_and_its_standard_error(sample: list[float]) -> None:
    mean, error = ratio(sample, [1.0] * len(sample))
    assert mean == pytest.approx(np.mean(sample), abs=1e-9)
    assert error == pytest.approx(np.std(sample, ddof=1) / math.sqrt(len(sample)), abs=1e-9)


def test_the_error_of_a_ratio_is_what_resampling_gives() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 30, 400).astype(float)
    sums = weights * rng.normal(2.0, 0.5, 400)
    _, error = ratio(sums.tolist(), weights.tolist())
    draws = rng.integers(0, 400, (2000, 400))
    resampled = sums[draws].sum(1) / weights[draws].sum(1)
    assert error == pytest.approx(float(resampled.std()), rel=0.08)


def test_a_paired_difference_is_sharper_than_two_means() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 3, 200)
    one = effect("loss", hard.tolist(), (hard - 0.1 + rng.normal(0, 0.2, 200)).tolist(), better="lower")
    assert one.shown
    assert one.difference_stderr < 0.1 * one.before_stderr
    low, high = one.interval
    assert low < -0.1 < high < 0


def test_noise_and_the_wrong_direction_are_not_shown() -> None:
    assert not effect("x", [0.0, 1.0], [0.0, 1.0], better="higher").shown
    assert not effect("x", [0.0, 0.0], [1.0, 1.0], better="lower").shown
    assert effect("x", [0.0, 0.0], [1.0, 1.0], better="higher").shown


def test_numbers_travel_through_a_manifest() -> None:
    one = effect("accuracy", [0.0, 1.0], [1.0, 1.0], better="higher", trials=8)
    stats = as_stats([one])
    assert (stats["before_accuracy"], stats["after_accuracy"], stats["n_accuracy"]) == (0.5, 1.0, 2)
    assert from_stats(stats, "x") == [one]
    assert from_stats({}, "x") == []
    with pytest.raises(InputError, match="node x: an effect is malformed"):
        from_stats({"effects": [{"metric": "m"}]}, "node x")
