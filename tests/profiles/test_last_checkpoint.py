"""The last checkpoint of a stopped training against the time that it has, in the plans of the profiles."""

from __future__ import annotations

import pytest

from flows import last_checkpoint
from tests.support.profile_plans import planned


def stops(name: str, *overrides: str) -> dict[str, last_checkpoint.LastCheckpoint]:
    profile, plans, estimates = planned(name, *overrides)
    return last_checkpoint.of_plan(plans, profile, estimates)


@pytest.mark.parametrize("name", ["tiny", "small", "7b"])
def test_it_fits_in_every_profile(name: str) -> None:
    sums = stops(name)
    assert {"pretrain_1", "pretrain_2", "pretrain_3", "vlm"} <= set(sums)
    assert list(last_checkpoint.warnings(sums)) == []


def test_what_does_not_fit_is_told_with_its_sum_and_what_would_be_lost() -> None:
    """Thirty seconds, which every job had before, were too few for `7b`."""
    sums = stops("7b", "resources.pretrain_1.grace_seconds=30", "resources.vlm.grace_seconds=30")
    first, vlm = sums["pretrain_1"], sums["vlm"]
    assert first.bytes == 12 * 8_114_180_096 / 8, "float32 weights and two moments, an eighth on each machine"
    assert vlm.bytes == 8 * first.bytes
    assert first.store == first.bytes / 1.25e9
    assert first.seconds == pytest.approx(first.step + 12.2 + 9.7 + 2, abs=0.1)
    assert (first.grace, first.fits) == (25, False)
    lines = list(last_checkpoint.warnings(sums))
    assert [line.partition(":")[0] for line in lines] == ["pretrain_1", "vlm"]
    assert "needs 26 s for a last checkpoint (12.2 GB a machine: a step 2.0, to disk 12, to the store 10" in lines[0]
    assert "has 25: up to 33 min of training would be lost; set resources.pretrain_1.grace_seconds = 31" in lines[0]
    assert stops("7b", "resources.pretrain_1.grace_seconds=31")["pretrain_1"].fits, "what the line says is enough"


def test_engines_that_save_by_themselves_and_small_models_have_nothing_to_say() -> None:
    assert not {"sft_tulu", "dpo_tulu", "grpo_deepscaler", "evaluate_original"} & set(stops("7b"))
    assert stops("small")["sft_tulu"].text() == ""
    assert stops("7b")["vlm"].text() == "last checkpoint 97.4 GB a machine, 179 of 395 s"
