"""Something is killed or stopped at a random point of a run, and the next run makes what an undisturbed one makes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.campaign import Campaign, own_store

pytestmark = pytest.mark.slow
TRIALS = int(os.environ.get("MOXIN_FAULT_TRIALS", "3"))
FIRST = int(os.environ.get("MOXIN_FAULT_SEED", "0"))


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    with own_store(tmp_path_factory.mktemp("store")) as store:
        yield Campaign(store, tmp_path_factory.mktemp("homes"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + TRIALS))
def test_what_is_killed_anywhere_comes_out_right(campaign: Campaign, seed: int) -> None:
    trial = campaign.trial(seed)
    print(f"trial {seed}: {trial.hits or 'it was over before'}; {trial.runs} runs, {trial.resumed} resumed")
