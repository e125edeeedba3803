"""A whole stage through job arrays. A real cluster: tests/launch/test_slurm_arrays.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.artifacts import Documents
from stages.core.testing import LocalContext, local_artifact
from stages.dedup.run import run
from stages.dedup.spec import DedupConfig
from stages.lib.data import job_array
from stages.lib.formats.documents import write_documents
from tests.support.array_cluster import Cluster
from tests.support.deduplication import dedup, planted
from tests.support.pool_tasks import parts


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_array, "SECONDS", 0.001)
    monkeypatch.setattr(job_array, "PATIENCE", 0.001)


def test_dedup_through_arrays_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole stage: arguments pass through JSON, elements are lost, and no byte differs."""
    texts = planted(3, size=90, copies=60)
    dedup(tmp_path / "one", *[texts[n::4] for n in range(4)], recipe="the-stack")
    monkeypatch.setenv("MOXIN_ARRAYS", "1")
    inputs = []
    for n in range(4):
        (tmp_path / f"in-{n}").mkdir()
        write_documents(
            tmp_path / f"in-{n}", ({"id": f"{n}-{i}", "text": t, "source": f"s{n}"} for i, t in enumerate(texts[n::4]))
        )
        inputs.append(local_artifact(Documents, tmp_path / f"in-{n}"))
    ctx = LocalContext(
        tmp_path / "two",
        DedupConfig(recipe="the-stack", workers="slurm"),
        {"sources": inputs},
    )
    cluster = Cluster(2, lost=lambda array, element: (array, element) == (0, 0))
    monkeypatch.setattr(ctx, "array", lambda place, name, tasks, cpus, memory_gib: cluster.ask(place, name, tasks))
    run(ctx)
    assert parts(tmp_path / "one") == parts(tmp_path / "two")
    assert cluster.asked[:2] == [4, 2]
