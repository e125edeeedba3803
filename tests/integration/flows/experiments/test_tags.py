"""A tag stays with its result until somebody moves it on purpose."""

from __future__ import annotations

import pytest

from flows import experiments, repair
from flows.experiments import results, tags
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.pipeline import PIPELINE

NODE = "sft_tulu"


def result(ledger: Ledger, experiment: str = "", key: str = "") -> StageResult:
    values = experiments.view(ledger, PIPELINE, "tiny", experiment)
    return results.of_node(ledger, PIPELINE, values, NODE, key)


def test_a_tag_is_read_as_a_key_whatever_its_node_has_by_then(tuned: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_USER", "ada")
    best = result(tuned, "lr")
    tags.give(tuned, "best", best, "for the paper")
    (record,) = tuned.tags()
    assert (record.key, record.node, record.why, record.created_by) == (best.key, NODE, "for the paper", "ada")
    assert result(tuned, key="best").key == best.key != result(tuned).key
    assert tags.give(tuned, "best", best) == record, "given again, it is the same"


def test_a_tag_that_exists_is_refused_and_moved_on_purpose_alone(
    tuned: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = result(tuned), result(tuned, "lr")
    tags.give(tuned, "best", first)
    with pytest.raises(ConfigError, match=f"tag 'best' is {NODE} {first.key[:12]} already .*--move"):
        tags.give(tuned, "best", other)
    there = tuned.tag("best")
    tags.give(tuned, "best", other, move=True)
    assert tuned.tags()[0].key == other.key
    monkeypatch.setattr(tuned, "tag", lambda name: there)  # what was read before somebody else moved it
    with pytest.raises(ConfigError, match="by somebody else meanwhile"):
        tags.give(tuned, "best", other, move=True)
    monkeypatch.setattr(tuned, "tag", lambda name: None)
    with pytest.raises(ConfigError, match="by somebody else meanwhile"):
        tags.give(tuned, "best", other)


def test_what_cannot_be_is_said(tuned: Ledger) -> None:
    for name in ("", "a/b", "abc123", ".x"):
        with pytest.raises(ConfigError, match="does not read like a key"):
            tags.give(tuned, name, result(tuned))
    with pytest.raises(ConfigError, match="no tag 'bets'; there are: none"):
        tags.take(tuned, "bets")
    tags.give(tuned, "best", result(tuned))
    with pytest.raises(ConfigError, match="did you mean 'best'"):
        result(tuned, key="bets")


def test_a_name_is_taken_away_and_its_result_stays(tuned: Ledger) -> None:
    tags.give(tuned, "best", result(tuned))
    tags.take(tuned, "best")
    assert tuned.tags() == []
    assert result(tuned)


def test_a_tag_that_cannot_be_read_is_set_aside(tuned: Ledger) -> None:
    tuned.store.put("tags/best.json", b"{")
    (finding,) = [each for each in repair.examine(tuned) if each.object == "tags/best.json"]
    assert repair.apply([finding]) == [finding]
    assert tuned.tags() == []
