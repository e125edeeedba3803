"""A store whose lists come late ("eventually consistent"): what was written a moment ago is not in them, what was
removed still is. What is asked for by its name is never late (decisions/late_lists.md). Nothing is lost, and no work
is done twice. Garbage collection against a result that is being published: test_protocol.py; receipts:
tests/unit/lib/data/test_job_array.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.garbage_items import Limits
from flows.repair import _drop, _torn
from flows.store_garbage import RESULTS, UNCOMMITTED, StoreGarbage
from stages.core.artifacts import FileEntry
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.messages import Lease
from stages.core.records import AttemptRecord, TagRecord
from stages.core.runtime_checkpoints import RuntimeCheckpoints
from stages.core.store_errors import Damaged
from tests.support.memory_store import World
from tests.support.probe_pipeline import KEY, Stream, request_of, result_with

LATE = 60.0


@pytest.fixture
def world() -> Iterator[World]:
    world = World(late_lists=LATE)
    with world.entered():
        yield world


@pytest.fixture
def late(world: World) -> Ledger:
    return Ledger(world.store())


def stored(ledger: Ledger, name: str) -> FileEntry:
    ledger.store.put(name, b"text")
    return FileEntry(path=name.rsplit("/", 1)[1], size=4, sha256=sha256(b"text"), object=name)


def published(ledger: Ledger) -> Lease:
    lease = ledger.acquire(KEY, "tester")
    files = [stored(ledger, f"objects/probe_source/{KEY}/{lease.epoch:06d}/documents/{n}") for n in range(2)]
    ledger.publish(result_with(files, lease.epoch), lease)
    ledger.release(lease)
    return lease


def committed(ledger: Ledger, lease: Lease, step: int) -> FileEntry:
    entry = stored(ledger, f"checkpoints/{KEY}/{step:012d}/{lease.epoch:06d}/weights")
    ledger.commit_checkpoint(lease, step, [entry])
    return entry


def test_a_result_of_a_moment_ago_has_lost_nothing(late: Ledger) -> None:
    lease = published(late)
    result = late.manifest(KEY)
    assert result is not None
    assert late.missing_objects(result[0]) == []
    gone = f"objects/probe_source/{KEY}/{lease.epoch:06d}/documents/1"
    late.store.delete([gone])
    assert late.missing_objects(result[0]) == [gone], "and what is gone is gone"


def test_a_checkpoint_of_a_moment_ago_counts_and_is_gone_on_from(late: Ledger, world: World, tmp_path: Path) -> None:
    lease = late.acquire(KEY, "tester")
    committed(late, lease, 3)
    world.wait(LATE, LATE)
    entry = committed(late, lease, 6)
    assert (late.checkpoint_steps(KEY), late.resumable_steps(KEY)) == ([3], [3, 6])
    request = request_of(late.store.address, late, "c" * 64).model_copy(update={"lease": lease})
    newest = RuntimeCheckpoints(request, late, Stream(tmp_path / "events").events, tmp_path).newest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RuntimeCheckpoints, "_restore_rows", lambda self, files: None)
        assert newest() == (6, [entry])
    late.store.delete([f"checkpoints/{KEY}/{6:012d}/COMMIT.json"])
    assert late.resumable_steps(KEY) == [3], "one that is removed is no checkpoint, whatever was noted"


def test_a_file_that_the_store_lost_is_still_found_out(late: Ledger) -> None:
    lease = late.acquire(KEY, "tester")
    entry = stored(late, f"checkpoints/{KEY}/{3:012d}/{lease.epoch:06d}/weights")
    late.store.delete([entry.object])
    with pytest.raises(Damaged, match="is not in the store"):
        late.commit_checkpoint(lease, 3, [entry])


def test_no_epoch_is_given_twice_where_the_lease_is_lost(late: Ledger) -> None:
    for _ in range(3):
        lease = late.acquire(KEY, "tester")
        record = {"key": KEY, "epoch": lease.epoch, "node": "n", "run_id": "r", "launcher": "l", "started_at": "t"}
        late.record_attempt(AttemptRecord(**record))
        late.release(lease)
    late.store.delete([f"leases/{KEY}.json"])
    assert late.acquire(KEY, "tester").epoch == 4


def test_a_committed_checkpoint_is_neither_garbage_nor_set_aside(late: Ledger, world: World) -> None:
    """Its files have come into the lists, its marker has not."""
    lease = late.acquire(KEY, "tester")
    entry = stored(late, f"checkpoints/{KEY}/{3:012d}/{lease.epoch:06d}/weights")
    world.wait(7200.0, LATE)
    late.commit_checkpoint(lease, 3, [entry])
    late.release(lease)
    assert [item for item in StoreGarbage(late, Limits()).find() if item.kind == UNCOMMITTED] == []
    assert _torn(late, KEY, 3, {}, deep=False) is None
    assert _drop(late, KEY, 3, committed=False) is False
    assert late.checkpoint(KEY, 3).files == (entry,)


def test_a_result_with_a_name_of_a_moment_ago_stays(late: Ledger, world: World) -> None:
    published(late)
    world.wait(90_000.0, LATE)
    late.set_tag(TagRecord(name="best", key=KEY, node="source", created_by="me", created_at="t"))
    items = [item for item in StoreGarbage(late, Limits(results_after=0.0)).find() if item.kind == RESULTS]
    assert [item.kept.partition(":")[0] for item in items] == ["the store's lists are late"]
    world.wait(LATE, LATE)
    assert world.listed().keys() >= {"tags/best.json"}
    world.late_lists = 0.0
    assert [item for item in StoreGarbage(late, Limits(results_after=0.0)).find() if item.kind == RESULTS] == []
