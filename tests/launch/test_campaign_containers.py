"""The campaign with every stage in a container of its own: a container, its flow or the store killed, stopped or asked
to stop at a random point (tests/fault/test_campaign.py has the others).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from flows.environments import Image
from tests.support.campaign import CONTAINER, Campaign
from tests.support.campaign_store import own_store

pytestmark = [pytest.mark.slow, pytest.mark.container]
TRIALS = int(os.environ.get("MOXIN_FAULT_CONTAINERS", "1"))
FIRST = int(os.environ.get("MOXIN_FAULT_SEED", "0"))


def no_services() -> NoReturn:
    raise AssertionError("a container's run needs no Prefect")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory, docker_client: Any, probe_image: Image) -> Iterator[Campaign]:
    services: Any = no_services
    with own_store(tmp_path_factory.mktemp("store")) as store:
        yield Campaign(store, tmp_path_factory.mktemp("homes"), services, docker_client, probe_image.reference)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + TRIALS))
def test_what_is_killed_in_a_container_comes_out_right(campaign: Campaign, seed: int) -> None:
    trial = campaign.trial(seed, CONTAINER)
    print(f"\n{trial}", flush=True)
    assert not trial.problem, trial.problem
