"""Something is killed or stopped at a random point of a run, and the next run makes what an undisturbed one makes."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator

import pytest

from tests.support.campaign import Campaign, Trial
from tests.support.campaign_store import own_store

pytestmark = pytest.mark.slow
TRIALS = int(os.environ.get("MOXIN_FAULT_TRIALS", "3"))
FIRST = int(os.environ.get("MOXIN_FAULT_SEED", "0"))


@pytest.fixture(scope="module")
def trials() -> Iterator[list[Trial]]:
    """What came of all of them; at the end, how long recovery took. No limit: it is what this machine and its load
    make of it.
    """
    made: list[Trial] = []
    yield made
    if took := sorted(trial.recovery for trial in made if trial.recovery is not None):
        print(f"\nrecovery of {len(took)}: median {statistics.median(took):.1f} s, worst {took[-1]:.1f} s")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    with own_store(tmp_path_factory.mktemp("store")) as store:
        yield Campaign(store, tmp_path_factory.mktemp("homes"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + TRIALS))
def test_what_is_killed_anywhere_comes_out_right(campaign: Campaign, trials: list[Trial], seed: int) -> None:
    trials.append(campaign.trial(seed))
    print(trials[-1])
