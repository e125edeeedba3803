"""`moxin verify --rerun`: a result is made again, compared, and nothing of it stays."""

from __future__ import annotations

from typing import Any

import pytest

from flows.release.chain import read
from flows.release.rerun import Rerun, rerun
from stages.core.errors import ConfigError, InputError
from stages.core.ledger import Ledger
from tests.support.bench import PIPE, Bench
from tests.support.probe_pipeline import InlineLauncher, profile_of


def contents(ledger: Ledger) -> dict[str, str]:
    return {row.key: row.etag for row in ledger.store.list("")}


def again(bench: Bench, name: str, node: Any = None, before: Any = None) -> Rerun:
    profile = profile_of(PIPE, bench.folder)
    link = next(link for link in read(bench.ledger, "test", "train_2").links if link.node == name)
    launcher = InlineLauncher(bench.folder, before)
    return rerun(bench.ledger, link, node or PIPE[name], profile.resources[name], launcher, print)


@pytest.mark.parametrize("name", ["source_a", "shards", "train_2"])
def test_the_same_bits_come_out_and_the_store_stays_as_it_was(finished: Bench, name: str) -> None:
    before = contents(finished.ledger)
    done = again(finished, name)
    assert (done.differences, done.circumstances, done.kept) == ((), (), True)
    assert "the same, bit for bit" in done.line
    assert contents(finished.ledger) == before


class Promising(type(PIPE["source_a"]), env="data", revision=1, reproducible="bits"):
    """A stage that promises bits."""

    stage = "probe_source"


def test_a_stage_that_does_not_keep_its_promise_is_named(finished: Bench) -> None:
    """The published result is given another text, so that what is made again differs from it."""
    Promising.stage = "probe_source"
    result = finished.results()["source_a"]
    config = {**result.config, "text": "other"}
    finished.ledger.store.put(
        f"manifests/{result.key}.json", result.model_copy(update={"config": config}).model_dump_json().encode()
    )
    before = contents(finished.ledger)
    done = again(finished, "source_a", Promising(name="source_a"))
    assert done.differences == ("documents: 1 of 1 files (deep/part-00000.txt)",)
    assert not done.kept
    assert "not the same: documents: 1 of 1 files" in done.line
    assert contents(finished.ledger) == before
    assert again(finished, "source_a").kept, "a stage that promises nothing breaks no promise"


def test_a_stage_that_fails_leaves_nothing(finished: Bench) -> None:
    before = contents(finished.ledger)

    def fail(_: Any) -> None:
        raise InputError("no such thing")

    with pytest.raises(InputError, match="source_a could not be made again"):
        again(finished, "source_a", before=fail)
    assert contents(finished.ledger) == before


def test_another_revision_is_another_stage(finished: Bench) -> None:
    class Later(type(PIPE["source_a"]), env="data", revision=2):  # type: ignore[misc]
        stage = "probe_source"

    Later.stage = "probe_source"
    with pytest.raises(ConfigError, match="source_a was made by revision 1 of stage probe_source, here is revision 2"):
        again(finished, "source_a", Later(name="source_a"))
