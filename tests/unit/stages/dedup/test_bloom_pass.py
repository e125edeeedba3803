"""Documents through Bloom filters leg by leg: where a leg ends, or is broken off, decides nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stages.core.artifacts import Documents, FileEntry
from stages.core.errors import InputError
from stages.core.testing import local_artifact
from stages.dedup import bloom_pass
from stages.dedup.bloom_pass import Kept, Pace, filter_documents
from stages.dedup.bloom_size import filter_bytes
from stages.dedup.funnel import Funnel
from stages.lib.data.workers import Pool
from stages.lib.formats.documents import read_documents, write_documents
from tests.support.deduplication import dedup, words
from tests.support.paths import ROOT

EACH = Pace(seconds=0, written=0, least=0)
"""A leg for each shard."""


def corpus(folder: Path, shards: int = 5) -> list[Kept]:
    """Shards of eight documents, put together from few paragraphs."""
    rng = random.Random(9)
    shared = [" ".join(words(rng, 20)) for _ in range(12)]
    found = []
    for n in range(shards):
        (place := folder / f"in-{n}").mkdir(parents=True)
        texts = ["\n".join([*rng.sample(shared, 2), " ".join(words(rng, 20))]) for _ in range(8)]
        rows = ({"id": f"{n}-{i}", "text": t, "source": "s"} for i, t in enumerate(texts))
        size = write_documents(place, rows).text_bytes
        found.append(Kept(tuple(local_artifact(Documents, place).entries()), size))
    return found


def passed(folder: Path, partitions: list[list[Kept]], pace: Pace | None = None) -> tuple[list[bytes], dict[str, Any]]:
    """Bytes of the parts of what is left, and the funnel."""
    funnel = Funnel()
    left = filter_documents(Pool(folder), partitions, 1, "dedup_web", funnel, pace=pace)
    return [Path(entry.object).read_bytes() for entry in left], funnel.value()


def test_where_legs_end_decides_nothing(tmp_path: Path) -> None:
    shards = corpus(tmp_path)
    whole = passed(tmp_path / "whole", [shards])
    assert passed(tmp_path / "each", [shards], EACH) == whole
    assert 0 < whole[1]["rows"]["out"]["bytes"] < sum(kept.text_bytes for kept in shards)


def test_a_broken_pass_goes_on_from_the_last_leg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = corpus(tmp_path)
    wanted = passed(tmp_path / "whole", [shards])
    plain, seen = bloom_pass._filter_shard, []

    def breaking(machine: Any, parts: list[FileEntry], target: Path, funnel: Funnel) -> int:
        size = plain(machine, parts, target, funnel)
        seen.append(Path(parts[0].object).parent.name)
        if len(seen) == 4:
            raise KeyboardInterrupt  # after the filter has taken the shard in, before its result counts
        return size

    monkeypatch.setattr(bloom_pass, "_filter_shard", breaking)
    with pytest.raises(KeyboardInterrupt):
        passed(tmp_path / "broken", [shards], EACH)
    assert passed(tmp_path / "broken", [shards], EACH) == wanted
    assert seen == ["in-0", "in-1", "in-2", "in-3", "in-3", "in-4"]


def test_each_partition_has_a_filter_of_its_own(tmp_path: Path) -> None:
    """Both hold the same shards: what one has seen is new to the other, whether they go together or in turn."""
    shards = corpus(tmp_path)
    alone = passed(tmp_path / "alone", [shards])[0]
    assert passed(tmp_path / "both", [shards, shards], EACH)[0] == alone + alone
    one = filter_bytes(sum(kept.text_bytes for kept in shards))
    left = filter_documents(
        Pool(tmp_path / "turn"), [shards, shards], one / (1 << 30), "dedup_web", Funnel(), pace=EACH
    )
    assert [Path(entry.object).read_bytes() for entry in left] == alone + alone


def test_copies_of_a_filter_are_no_larger_than_the_text(tmp_path: Path) -> None:
    shards = corpus(tmp_path, 12)
    assert passed(tmp_path / "due", [shards], Pace(seconds=0, written=0)) == passed(tmp_path / "whole", [shards])
    copies = [path.stat().st_size for path in (tmp_path / "due").rglob(bloom_pass.FILTER)]
    text = sum(kept.text_bytes for kept in shards)
    assert 1 < len(copies) < 11
    assert sum(copies) <= text


def test_a_filter_that_does_not_fit_is_refused_with_the_sum(tmp_path: Path) -> None:
    large = Kept(corpus(tmp_path, 1)[0].parts, 10**13)
    with pytest.raises(
        InputError, match=r"dedup_web\.bloom_memory_gib = 1: a filter for 10,000\.0 GB of text / 6 B = 1,6"
    ):
        filter_documents(Pool(tmp_path / "work"), [[large]], 1, "dedup_web", Funnel())
    assert not list((tmp_path / "work").rglob("*.parquet"))


def test_a_partition_is_deduplicated_by_itself(tmp_path: Path) -> None:
    """A document that is there twice, in shards of two partitions, stays twice; what is told is of both."""
    rng = random.Random(3)
    texts = [" ".join(words(rng, 80)) for _ in range(6)]
    together = dedup(tmp_path / "one", texts, texts, recipe="dclm")
    assert together.stats["documents"] == 6
    apart = dedup(tmp_path / "two", texts, texts, recipe="dclm", partitions=2)
    assert [d["text"] for d in read_documents(apart.output("documents"))] == [*texts, *texts]
    assert apart.stats["funnel"]["in"]["documents"] == 12
    assert apart.meta["documents"]["per_license"] == {"": 12}


CHILD = """
import json, sys
from pathlib import Path
from stages.core.artifacts import FileEntry
from tests.unit.stages.dedup.test_bloom_pass import EACH, Kept, passed
shards = [Kept(tuple(map(FileEntry.model_validate, parts)), size) for parts, size in json.load(open(sys.argv[1]))]
passed(Path(sys.argv[2]), [shards], EACH)
"""


@pytest.mark.slow  # a process that imports numba
def test_a_pass_that_is_killed_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    shards = corpus(tmp_path, 40)
    wanted = passed(tmp_path / "whole", [shards])
    listing, killed = tmp_path / "shards.json", tmp_path / "killed"
    listing.write_text(json.dumps([[[e.value() for e in kept.parts], kept.text_bytes] for kept in shards]))

    def made() -> int:
        return sum(name.endswith(".parquet") for _, _, names in os.walk(killed) for name in names)

    with subprocess.Popen([sys.executable, "-c", CHILD, str(listing), str(killed)], cwd=ROOT) as child:
        deadline = time.monotonic() + 120
        while made() < 3 and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert 3 <= made() < 40
    assert passed(killed, [shards], EACH) == wanted
