"""Which result a command shows: an experiment's own, the profile's, that of settings, that of a key."""

from __future__ import annotations

import pytest

from flows import experiments, profiles
from flows.experiments import results
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.pipeline import PIPELINE
from tests.support.tuned_family import CHANGE

LOSS = "final_loss"


def loss(ledger: Ledger, profile: str = "tiny", experiment: str = "", key: str = "") -> float:
    values = experiments.view(ledger, PIPELINE, profile, experiment)
    return results.of_node(ledger, PIPELINE, values, "sft_tulu", key).stats[LOSS]


def test_names_are_each_ones_own(tuned: Ledger) -> None:
    assert (loss(tuned), loss(tuned, experiment="lr"), loss(tuned, "tiny@lr")) == (2.5, 2.25, 2.25)


def test_a_key_is_found_by_its_beginning(tuned: Ledger) -> None:
    key = tuned.nodes("tiny@lr")["sft_tulu"].key
    assert loss(tuned, key=key[:12]) == 2.25
    for wrong, message in (
        ("abc", "6 characters"),
        ("0" * 12, "no result or attempt has it"),
        ("xyzxyz", "no tag"),
    ):
        with pytest.raises(ConfigError, match=message):
            loss(tuned, key=wrong)
    other = tuned.nodes("tiny")["collect"].key
    with pytest.raises(ConfigError, match="is collect's, not sft_tulu's"):
        loss(tuned, key=other[:12])


def test_settings_without_a_result_do_not_show_that_of_others(tuned: Ledger) -> None:
    values = profiles.load("tiny", PIPELINE, [CHANGE])
    with pytest.raises(ConfigError, match=r"in profile 'tiny' with sft_tulu.learning_rate=3e-4 yet: run it with"):
        results.of_node(tuned, PIPELINE, values, "sft_tulu")
    assert results.of_nodes(tuned, PIPELINE, values) == {}


def test_the_words_for_a_place_make_it_found_again(tuned: Ledger) -> None:
    values = experiments.view(tuned, PIPELINE, "tiny", "lr")
    assert (results.place(values), results.command(values)) == ("experiment 'lr'", "moxin run --experiment lr")
    assert results.command(profiles.load("tiny", PIPELINE)) == "moxin run --profile tiny"
