"""`dedup` over a store: inputs are read by range, what passes between its steps are objects, and the output is what its
tasks stored. The bytes are those of a run on local files.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.ledger import Ledger
from tests.support.deduplication import dedup, planted
from tests.support.probe_pipeline import Stream
from tests.support.stored_dedup import request, run_here, sources
from tests.support.worker_pool import parts

KEY = "d" * 64


@pytest.mark.parametrize("recipe", ["dclm", "the-stack", "dclm-suffix-array"])
def test_a_store_gives_the_bytes_of_local_files(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setenv("MOXIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path / "scratch"))
    texts = planted(3, size=60, copies=50)
    shares = [texts[n::3] for n in range(3)]
    here = dedup(tmp_path / "here", *shares, recipe=recipe)
    asked = request(ledger, sources(ledger, tmp_path, shares), KEY, recipe=recipe)
    result = run_here(asked, Stream(tmp_path / "events.jsonl").events)
    entries = result.outputs["documents"].files
    there = {entry.path: stored[0] for entry in entries if (stored := ledger.store.get(entry.object)) is not None}
    assert there == parts(tmp_path / "here")
    assert result.stats == here.stats
