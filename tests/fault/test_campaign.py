"""Something is killed or stopped at a random point of a run, and the next run makes what an undisturbed one makes."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.campaign import Campaign
from tests.support.campaign_prefect import OwnPrefect, own_prefect
from tests.support.campaign_results import Results, table
from tests.support.campaign_store import own_store

pytestmark = pytest.mark.slow
TRIALS = int(os.environ.get("MOXIN_FAULT_TRIALS", "20"))
FIRST = int(os.environ.get("MOXIN_FAULT_SEED", "0"))
RESULTS = os.environ.get("MOXIN_FAULT_RESULTS")


@pytest.fixture(scope="module")
def results() -> Iterator[Results]:
    """What came of all of them; at the end, how long recovery took. No limit: it is what this machine and its load
    make of it.
    """
    kept = Results(Path(RESULTS) if RESULTS else None)
    yield kept
    print(f"\n{table(kept.trials)}")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    with own_store(tmp_path_factory.mktemp("store")) as store, ExitStack() as stack:

        def services() -> OwnPrefect:
            return stack.enter_context(own_prefect(tmp_path_factory.mktemp("prefect"), store.settings))

        yield Campaign(store, tmp_path_factory.mktemp("homes"), services)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + TRIALS))
def test_what_is_killed_anywhere_comes_out_right(campaign: Campaign, results: Results, seed: int) -> None:
    trial, new = results.of(seed, functools.partial(campaign.trial, seed))
    print(f"\n{trial}{'' if new else ' (before)'}", flush=True)
    assert not trial.problem, trial.problem
