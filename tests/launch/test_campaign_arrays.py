"""The campaign with every stage as a job of Slurm, and an array of jobs that packs the shards: an element, a stage, its
srun, the flow or the store killed, stopped or asked to stop at a random point (tests/fault/test_campaign.py has the
others).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from tests.support.campaign import ARRAY, Campaign
from tests.support.campaign_store import own_store

pytestmark = [pytest.mark.slow, pytest.mark.container, pytest.mark.usefixtures("slurm_cluster")]
TRIALS = int(os.environ.get("MOXIN_FAULT_ARRAYS", "1"))
FIRST = int(os.environ.get("MOXIN_FAULT_SEED", "0"))


def no_services() -> NoReturn:
    raise AssertionError("a run of jobs needs no Prefect")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    services: Any = no_services
    with own_store(tmp_path_factory.mktemp("store")) as store:
        yield Campaign(store, tmp_path_factory.mktemp("homes"), services)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + TRIALS))
def test_what_is_killed_of_an_array_comes_out_right(campaign: Campaign, seed: int) -> None:
    trial = campaign.trial(seed, ARRAY)
    print(f"\n{trial}", flush=True)
    assert not trial.problem, trial.problem
