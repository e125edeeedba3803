"""`dedup` over a store: inputs are read by range, what passes between its steps are objects, and the output is what its
tasks stored. The bytes are those of a run on local files.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.ledger import Ledger
from tests.support.deduplication import dedup, planted
from tests.support.paths import ROOT
from tests.support.pool_tasks import parts
from tests.support.probe_pipeline import Stream
from tests.support.stored_dedup import request, run_here, sources

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


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    ctx = dedup(tmp_path / "here", planted(7), recipe="dclm")
    script = (
        "import sys, pathlib; from tests.support.deduplication import dedup, planted\n"
        "dedup(pathlib.Path(sys.argv[1]), planted(7), recipe='dclm')"
    )
    environment = os.environ | {"PYTHONHASHSEED": "99", "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "there")], check=True, env=environment, cwd=ROOT)
    assert parts(tmp_path / "here") == parts(tmp_path / "there")
    assert ctx.stats["documents"] > 10
