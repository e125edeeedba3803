"""Hours, dollars and energy from recorded times and named prices."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from flows.cost import GPU_PRICES
from flows.release import energy
from stages.core.ledger import Ledger
from stages.core.resources import Resources
from tests.support.report_pages import publish

PRICES: dict[str, Any] = {
    "gpu": {"dollars_per_hour": 3.0, "watts": 500.0},
    "cpu": {"dollars_per_core_hour": 0.1},
}


def test_gpus_are_paid_for_as_long_as_the_attempt_took(ledger: Ledger) -> None:
    result = publish(ledger, "pretrain_2")  # 61 s wall, 91.5 s of cores
    used = energy.use(result, Resources(gpus=8, nodes=2), PRICES)
    assert used.gpu_hours == pytest.approx(61 * 16 / 3600)
    assert used.dollars == pytest.approx(3.0 * used.gpu_hours)
    assert used.kwh == pytest.approx(0.5 * used.gpu_hours)


def test_cores_have_no_energy_until_somebody_says_their_watts(ledger: Ledger) -> None:
    result = publish(ledger, "pretrain_2")
    used = energy.use(result, Resources(), PRICES)
    assert (used.kwh, used.gpu_hours) == (None, 0.0)
    assert used.dollars == pytest.approx(0.1 * 91.5 / 3600)
    told = PRICES | {"cpu": PRICES["cpu"] | {"watts_per_core": 10.0}}
    assert energy.use(result, Resources(), told).kwh == pytest.approx(91.5 / 3600 / 100)


def test_a_sum_says_whose_energy_it_lacks(ledger: Ledger) -> None:
    result = publish(ledger, "pretrain_2")
    total = energy.total([energy.use(result, resources, PRICES) for resources in (Resources(), Resources(gpus=1))])
    assert total.unknown == ("pretrain_2",)
    assert total.kwh == pytest.approx(0.5 * 61 / 3600)
    assert total.wall_seconds == 122.0


def test_every_card_of_the_price_list_names_its_watts() -> None:
    prices = tomllib.loads(GPU_PRICES.read_text(encoding="utf-8"))
    assert prices["gpu"]["watts"] == 700.0
    assert all(card["watts"] > 0 for card in prices["cards"].values())
