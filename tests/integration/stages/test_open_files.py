"""No step opens more files the more there are: the real shuffles, each over hundreds of files, with room for 64."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stages.core.artifacts import Documents
from stages.core.context import LocalArtifact
from stages.core.testing import LocalContext, local_artifact
from stages.dedup import duplicates
from stages.lib.data.workers import Pool
from stages.lib.formats.documents import write_documents
from stages.quality import run as quality
from stages.quality.spec import QualityConfig
from stages.tokenize import packing
from stages.tokenize.packing import Windows, shuffle
from stages.tokenize.streams import Stream
from tests.support.deduplication import dedup, planted
from tests.support.encoded_ids import encoded, ids_of, in_order, random_parts

ROOM = 64


@contextlib.contextmanager
def few_open_files() -> Iterator[None]:
    """ROOM more open files than now are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    least = next(itertools.islice((n for n in itertools.count() if n not in used), ROOM, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_is_one(tmp_path: Path) -> None:
    opened = 0
    with few_open_files(), contextlib.ExitStack() as files, contextlib.suppress(OSError):
        for opened in range(2 * ROOM):
            files.enter_context(open(tmp_path / str(opened), "w"))
    assert ROOM // 2 <= opened <= 3 * ROOM // 2, "threads of other tests may open and close some meanwhile"


def test_bands_pairs_and_substrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """150 sources, each a shard of its own: of the bands 100 are merged at a time, in eight partitions, of the others
    all are read together.
    """
    texts = planted(5, size=120, copies=30)
    one = dedup(tmp_path / "one", texts, recipe="dclm-suffix-array")
    monkeypatch.setattr(duplicates, "RECORD_BYTES", 1 << 18)
    gathered = duplicates.gather
    monkeypatch.setattr(
        duplicates, "gather", lambda *args, **more: gathered(*args, **more, fan=100 if args[1] == "bands" else 512)
    )
    with few_open_files():
        many = dedup(tmp_path / "many", *([text] for text in texts), recipe="dclm-suffix-array")
    for name in ("funnel", "clusters", "candidate_pairs", "verified_pairs"):
        assert many.stats[name] == one.stats[name]
    steps = {path.parent.name: int(path.stem) + 1 for path in sorted(tmp_path.glob("many/tasks/*/*.json"))}
    assert steps["sign"] == steps["keep"] == 150
    assert steps["bands-merge"] > 1
    assert steps["pair"] == 8
    assert steps["substrings"] == 1


def test_the_global_shuffle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 groups: more than may be open, each of whose windows go to four shards."""
    parts = random_parts([7 * 2] * 300)
    files = encoded(tmp_path, parts)
    monkeypatch.setattr(packing, "GROUP_BYTES", 28)
    monkeypatch.setattr(packing, "SHARD_BYTES", 2100)
    with few_open_files(), Pool(tmp_path / "work") as pool:
        shards = shuffle(pool, "train", [Stream(files, 4200)], Windows(7, "uint16", 300, 5))
    assert len(shards) == 4
    assert np.array_equal(ids_of(shards), in_order(np.concatenate(parts), 5))


def test_what_quality_trains_on(tmp_path: Path) -> None:
    """200 documents in as many files, of each label, all of which are read."""
    inputs = {"positives": _apart(tmp_path / "good", "because"), "documents": _apart(tmp_path / "web", "click")}
    ctx = LocalContext(tmp_path, QualityConfig(train_documents=200), {port: [a] for port, a in inputs.items()})
    with few_open_files(), Pool(ctx.tasks) as pool:
        samples = quality.sample(ctx, pool)["samples"]
    assert sum(len(Path(part["lines"]["object"]).read_text().splitlines()) for part in samples) == 2 * 180


def _apart(folder: Path, word: str) -> LocalArtifact:
    folder.mkdir()
    for number in range(200):
        write_documents(folder, [{"id": str(number), "text": f"{word} {number}", "source": "s"}])
        (folder / "part-00000.parquet").rename(folder / f"part-1{number:04d}.parquet")
    return local_artifact(Documents, folder)
