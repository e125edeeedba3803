"""Which steps are trouble, and where a training goes back to, without a model: losses are made up."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.training.spikes import SpikeGuard, SpikePolicy, card_lines
from stages.pretrain.spec import PretrainConfig


def curve(steps: int) -> list[tuple[float, float]]:
    """Losses that fall from 4 to 2 with noise of 0.02, and norms that spread by a third: as a training has them."""
    rng = np.random.default_rng(0)
    falling = 2 + 2 * np.exp(-np.arange(steps) / 500)
    return list(zip(falling + rng.normal(0, 0.02, steps), np.exp(rng.normal(-1, 0.33, steps)), strict=True))


def test_of_3_000_ordinary_steps_none_is_a_spike_and_small_spikes_are() -> None:
    guard, told = SpikeGuard(SpikePolicy(deviations=6)), 0
    for number, (loss, norm) in enumerate(curve(3_000)):
        told += bool(guard.trouble(loss, norm))
        if number in (500, 2_900):  # while it falls, and later
            assert guard.trouble(loss * 1.3, norm).keys() == {"spike"}
            assert guard.trouble(loss, norm * 20).keys() == {"spike"}
            assert not guard.trouble(loss * 0.5, norm / 20)  # what gets better is none
        guard.accept(loss, norm)
    assert told == 0


def test_without_deviations_and_at_the_beginning_only_what_is_no_number_is_trouble() -> None:
    for policy in (SpikePolicy(), SpikePolicy(deviations=6)):
        guard = SpikeGuard(policy)
        for loss, norm in curve(60):
            guard.accept(loss, norm)
        assert guard.trouble(1e9, 1.0) == {}
        assert guard.trouble(math.nan, 1.0) == guard.trouble(1.0, math.inf) == {"not_finite": 1.0}


def walk(policy: SpikePolicy, bad: frozenset[int], steps: int, base: int = 1, crash: int | None = None) -> Any:
    """A training whose batches in `bad` give no number, with a checkpoint every `base` steps. crash: moves after which
    the attempt is lost, once. The batches that steps were made of, in order; None where it ended as diverged.
    """
    guard, done, taken, moves = SpikeGuard(policy), 0, [], 0
    saved: dict[int, tuple[str, list[int]]] = {0: (json.dumps(guard.state()), [])}
    while done < steps:
        moves += 1
        if moves == crash:
            done = max(saved)
            guard = SpikeGuard(policy)
            guard.restore(json.loads(saved[done][0]))
            taken = list(saved[done][1])
        batch = guard.batch(done)
        if batch in bad:
            guard.skip(done + 1, {"not_finite": 1.0}, math.nan, 1.0)
        else:
            guard.accept(2.0, 1.0)
            taken.append(batch)
        done += 1
        if guard.exhausted or (done == steps and not guard.finite):
            left_out = guard.way_back(done)
            if left_out is None:
                return None
            saved = {step: state for step, state in saved.items() if step <= left_out.step}
            done = max(saved)
            guard.go_back(left_out, json.loads(saved[done][0]))
            taken = list(saved[done][1])
        elif done % base == 0 and not guard.streak:
            saved[done] = json.dumps(guard.state()), list(taken)
    return taken, guard.statistics()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_where_it_goes_follows_from_the_losses_alone(data: Any) -> None:
    """Whatever checkpoints there are, and wherever an attempt is lost: the same batches, the same report."""
    policy = SpikePolicy(
        window=8,
        skips=data.draw(st.integers(0, 3)),
        tries=data.draw(st.integers(1, 3)),
        before=data.draw(st.integers(0, 6)),
        after=data.draw(st.integers(0, 6)),
    )
    bad = data.draw(st.frozensets(st.integers(0, 60), max_size=12))
    expected = walk(policy, bad, 40)
    assert walk(policy, bad, 40, base=data.draw(st.integers(2, 9))) == expected
    assert walk(policy, bad, 40, crash=data.draw(st.integers(2, 60))) == expected
    if expected is not None:
        assert not bad & set(expected[0])  # nothing was learned from them
        assert len(set(expected[0])) == len(expected[0])  # and nothing twice


def test_bad_batches_are_gone_around_with_those_before_and_after() -> None:
    policy = SpikePolicy(skips=1, before=3, after=2)
    taken, stats = walk(policy, frozenset({10, 11}), 20)
    assert taken == [*range(7), *range(13, 26)]
    assert stats["trouble"]["rolled_back"] == 1
    assert stats["trouble"]["left_out"] == 6
    row = {"step": 8, "event": "rolled_back", "from": 11, "left_out": 6, "why": "not_finite"}
    assert stats["trouble"]["events"] == [row]
    assert (
        "| went back from step 11 to 8: its loss or gradient was no finite number | around 6 batches |"
        in card_lines(stats)
    )


def test_one_bad_batch_costs_one_step_and_goes_into_the_card() -> None:
    taken, stats = walk(SpikePolicy(), frozenset({10}), 20)
    assert taken == [number for number in range(20) if number != 10]
    assert stats["trouble"]["events"] == [{"step": 11, "event": "skipped", "not_finite": 1.0}]
    assert "| step left out: its loss or gradient was no finite number | 1 |" in card_lines(stats)
    assert card_lines(walk(SpikePolicy(), frozenset(), 20)[1]) == []


def test_tries_are_counted_for_trouble_that_stays_and_not_over_months() -> None:
    far_apart = frozenset(range(50, 1000, 50))
    assert walk(SpikePolicy(window=8, skips=0, tries=1, before=2, after=2), far_apart, 1000) is not None
    assert walk(SpikePolicy(window=8, skips=0, tries=3, before=2, after=2), frozenset(range(50, 2000)), 60) is None


def test_the_default_policy_is_no_part_of_the_key_and_another_is() -> None:
    assert "spikes" not in PretrainConfig().identity()
    assert PretrainConfig(spikes=SpikePolicy()).identity() == PretrainConfig().identity()
    assert PretrainConfig(spikes=SpikePolicy(deviations=6)).identity()["spikes"]["deviations"] == 6.0
