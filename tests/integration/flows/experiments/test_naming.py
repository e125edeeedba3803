"""What a name stands for is said once, and nobody else's settings hide behind it."""

from __future__ import annotations

import pytest

from flows import experiments, profiles
from flows.experiments import naming
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.pipeline import PIPELINE

CHANGE = "pretrain_1.learning_rate=1e-3"


def begin(ledger: Ledger, *overrides: str, name: str = "lr1e3", profile: str = "tiny") -> profiles.Profile:
    return experiments.begun(ledger, name, profile, PIPELINE, overrides, "to see")


def test_a_new_name_is_recorded_with_who_why_and_what(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_USER", "ada")
    values = begin(ledger, CHANGE)
    assert (values.names, values.configs["pretrain_1"].learning_rate) == ("tiny@lr1e3", 1e-3)  # type: ignore[attr-defined]
    (record,) = ledger.experiments()
    assert (record.name, record.profile, record.overrides) == ("lr1e3", "tiny", (CHANGE,))
    assert (record.why, record.created_by) == ("to see", "ada")


def test_it_is_gone_on_with_by_its_name_alone_and_another_launcher_is_no_other_experiment(ledger: Ledger) -> None:
    begin(ledger, CHANGE)
    for overrides in ((), (CHANGE,), ("launcher=docker",)):
        values = begin(ledger, *overrides)
        assert values.configs["pretrain_1"].learning_rate == 1e-3  # type: ignore[attr-defined]
    assert values.settings.launcher == "docker"
    assert len(ledger.experiments()) == 1


@pytest.mark.parametrize(
    ("name", "profile", "overrides", "message"),
    [
        ("lr1e3", "tiny", ["pretrain_1.learning_rate=2e-3"], "other settings: pretrain_1.learning_rate 0.001 -> 0.002"),
        ("lr1e3", "small", [], "of profile 'tiny', not of 'small'"),
        ("tiny", "tiny", [], "a profile or a rehearsal has this name"),
        ("wiring", "tiny", [], "a profile or a rehearsal has this name"),
        ("a/b", "tiny", [], "a name has letters"),
        ("", "tiny", [], "a name has letters"),
        ("other", "tiny", ["pretrain_1.learning_rat=1"], "did you mean 'learning_rate'"),
    ],
)
def test_what_cannot_be_is_said(ledger: Ledger, name: str, profile: str, overrides: list[str], message: str) -> None:
    begin(ledger, CHANGE)
    with pytest.raises(ConfigError, match=message):
        begin(ledger, *overrides, name=name, profile=profile)
    assert len(ledger.experiments()) == 1


def test_an_unknown_name_gets_a_guess(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="no experiment 'lr1e4'; there are: none"):
        experiments.opened(ledger, "lr1e4", PIPELINE)
    begin(ledger, CHANGE)
    with pytest.raises(ConfigError, match="did you mean 'lr1e3'"):
        experiments.view(ledger, PIPELINE, "tiny", "lr1e4")


def test_the_first_of_two_who_begin_at_once_has_the_name(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(ledger, CHANGE)
    asked = iter([None])
    there = ledger.experiment
    monkeypatch.setattr(ledger, "experiment", lambda name: next(asked, there(name)))
    with pytest.raises(ConfigError, match="other settings"):
        begin(ledger, "pretrain_1.learning_rate=2e-3")


def test_profile_at_experiment_is_one_name(ledger: Ledger) -> None:
    begin(ledger, CHANGE)
    assert experiments.view(ledger, PIPELINE, "tiny@lr1e3").names == "tiny@lr1e3"
    assert naming.split("tiny") == ("tiny", "")
    with pytest.raises(ConfigError, match="name one experiment"):
        naming.split("tiny@a", "b")
