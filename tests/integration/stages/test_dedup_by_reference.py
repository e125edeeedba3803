"""`dedup` over a store: inputs are read by range, what passes between its steps are objects, and the output is what its
tasks stored. The bytes are those of a run on local files.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.core import runtime
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.messages import CodeRef, InputRef, StageRequest
from stages.dedup.spec import DedupConfig
from stages.lib.formats.documents import write_documents
from tests.support.deduplication import dedup, planted
from tests.support.probe_pipeline import Stream
from tests.support.worker_pool import parts

KEY = "d" * 64


def source(ledger: Ledger, folder: Path, number: int, texts: list[str]) -> InputRef:
    """An input in the store, with the ids that `tests.support.deduplication.dedup` gives."""
    folder.mkdir(parents=True)
    write_documents(folder, ({"id": f"{number}-{i}", "text": t, "source": f"s{number}"} for i, t in enumerate(texts)))
    data = (folder / "part-00000.parquet").read_bytes()
    ledger.store.put(f"objects/up/{number}", data)
    entry = FileEntry(path="part-00000.parquet", size=len(data), sha256=sha256(data), object=f"objects/up/{number}")
    manifest = ArtifactManifest(type="Documents", digest=f"{number:064x}", facets={}, files=(entry,))
    return InputRef(node="up", key="k", port="documents", manifest=manifest)


@pytest.mark.parametrize("recipe", ["dclm", "the-stack", "dclm-suffix-array"])
def test_a_store_gives_the_bytes_of_local_files(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setenv("MOXIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path / "scratch"))
    texts = planted(3, size=60, copies=50)
    sources = [texts[n::3] for n in range(3)]
    here = dedup(tmp_path / "here", *sources, recipe=recipe)
    request = StageRequest(
        run_id="run-1", node="dedup_text", stage="dedup", revision=3, key=KEY, lease=ledger.acquire(KEY, "tester"),
        config=DedupConfig.model_validate({"recipe": recipe}).model_dump(mode="json"),
        inputs={"sources": tuple(source(ledger, tmp_path / "up" / str(n), n, t) for n, t in enumerate(sources))},
        outputs={"documents": "Documents"}, code=CodeRef(source_digest="0" * 64), store=ledger.store.address,
    )  # fmt: skip
    stopper: Any = SimpleNamespace(context=None, cooperative=False)
    result = runtime.run(request, Stream(tmp_path / "events.jsonl").events, stopper)
    entries = result.outputs["documents"].files
    there = {entry.path: stored[0] for entry in entries if (stored := ledger.store.get(entry.object)) is not None}
    assert there == parts(tmp_path / "here")
    assert result.stats == here.stats
