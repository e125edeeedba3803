"""`stages.lib.training.data_order`: every window once an epoch, whatever their number; as random as a permutation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.training.data_order import DataOrder, bijection, block_windows
from tests.support.examples import max_examples


def keys(count: int, seed: int = 0) -> np.ndarray:
    return np.full(count, np.random.default_rng(seed).integers(0, 1 << 63), np.uint64)


def test_every_window_comes_once_an_epoch_whatever_their_number() -> None:
    """Also where they are no multiple of a block, of a batch, or fewer than a batch."""
    for windows in [*range(1, 300), *range(300, 4200, 61), 4096, 4097]:
        order = DataOrder(windows, 1 + windows % 13, 1 << windows % 5, windows)
        epochs = order.numbers(np.arange(2 * windows)).reshape(2, -1)
        assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(windows), (2, 1))), order


@given(st.integers(1, 5000), st.integers(1, 40), st.sampled_from([1, 2, 7, 64]), st.integers(0, 2**63), st.data())
@max_examples(60)
def test_the_order_is_the_same_from_wherever_it_is_taken_up(
    windows: int, lanes: int, block: int, seed: int, data: st.DataObject
) -> None:
    """By any number of processes, at any step: a position's window depends on nothing else."""
    order = DataOrder(windows, lanes, block, seed)
    whole = order.numbers(np.arange(3 * windows))
    some = np.array(data.draw(st.lists(st.integers(0, 3 * windows - 1), min_size=1, max_size=20)))
    assert np.array_equal(DataOrder(windows, lanes, block, seed).numbers(some), whole[some])


@given(st.integers(1, 3000), st.integers(0, 2**32))
@max_examples(40)
def test_a_bijection_of_any_size(count: int, seed: int) -> None:
    assert np.array_equal(np.sort(bijection(np.arange(count), count, keys(count, seed))), np.arange(count))


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    order = DataOrder(960, 8, 4, 0).numbers(np.arange(1920)).reshape(2, -1)
    other = DataOrder(960, 8, 4, 1).numbers(np.arange(960))
    for one, two in ((order[0], order[1]), (order[0], other)):
        assert (one == two).mean() < 0.02


def test_a_place_of_the_batch_reads_its_blocks_one_after_the_other_and_nobody_else_does() -> None:
    lanes, block, windows = 16, 8, 16 * 8 * 70 + 37
    steps = DataOrder(windows, lanes, block, 3).numbers(np.arange(lanes * block * 70)).reshape(-1, lanes) // block
    for lane in range(lanes):
        changes = np.flatnonzero(np.diff(steps[:, lane]))
        assert np.array_equal(changes % block, np.full(69, block - 1)), "a block is used up before the next"
    owners = [set(steps[:, lane].tolist()) for lane in range(lanes)]
    assert sum(map(len, owners)) == len(set().union(*owners)) == lanes * 70


def test_750_million_windows_cost_nothing() -> None:
    order = DataOrder(750_000_000, 512, 64, 0)
    numbers = order.numbers(np.arange(512 * 1_400_000, 512 * 1_400_001))
    assert 0 <= numbers.min() <= numbers.max() < 750_000_000
    assert len(set((numbers // 65_536).tolist())) > 400, "a batch draws from all over the disk"


def test_few_windows_make_short_blocks() -> None:
    assert block_windows(750_000_000, 512, 64) == 64
    assert block_windows(512 * 64 * 8, 512, 64) == 8
    assert block_windows(30, 4, 64) == 1


# --- beside a full permutation: statistics that it passes too, with bounds of one in a million ------------------------

WINDOWS, LANES, BLOCK = 1 << 17, 64, 16


def full_permutation(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(WINDOWS)


def of_blocks(seed: int) -> np.ndarray:
    return DataOrder(WINDOWS, LANES, BLOCK, seed).numbers(np.arange(WINDOWS))


@pytest.mark.parametrize("order", [full_permutation, of_blocks])
def test_as_random_as_a_full_permutation(order: object) -> None:
    numbers = order(7)  # type: ignore[operator]
    # Where windows go does not depend on where they lay, nor on what came just before.
    places = np.arange(WINDOWS)
    assert abs(np.corrcoef(numbers, places)[0, 1]) < 4.9 / np.sqrt(WINDOWS / BLOCK)
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 4.9 / np.sqrt(WINDOWS / BLOCK)
    # Displacement: that of two uniform places, a third of all on average.
    assert np.abs(numbers - places).mean() / WINDOWS == pytest.approx(1 / 3, abs=0.02)
    # Every batch draws its windows from 32 shards as 64 independent draws would: chi-square over all batches. Draws
    # of the same blocks say the same, so that one batch of each round of blocks counts.
    shards = (numbers // (WINDOWS // 32)).reshape(-1, LANES)[::BLOCK]
    expected = LANES / 32
    counts = np.stack([(shards == shard).sum(axis=1) for shard in range(32)], axis=1)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = 31 * len(shards)
    assert abs(chi_square - freedom) < 4.9 * np.sqrt(2 * freedom)
    # Distinct shards of a batch, of the 32: as many as by chance.
    distinct = (counts > 0).sum(axis=1).mean()
    assert distinct == pytest.approx(32 * (1 - (31 / 32) ** LANES), abs=0.5)


def test_which_blocks_meet_in_a_batch_is_chance() -> None:
    """Over many keys, each pair of places in a small domain is as likely as any other: chi-square."""
    count, draws = 12, 6000
    many = np.repeat(np.random.default_rng(0).integers(0, 1 << 63, draws).astype(np.uint64), 2)
    pairs = bijection(np.tile([3, 4], draws), count, many).reshape(-1, 2)
    seen = np.bincount(pairs[:, 0] * count + pairs[:, 1], minlength=count * count)
    seen = np.delete(seen, np.arange(count) * (count + 1))
    expected = draws / (count * (count - 1))
    freedom = count * (count - 1) - 1
    assert abs(((seen - expected) ** 2 / expected).sum() - freedom) < 4.9 * np.sqrt(2 * freedom)
