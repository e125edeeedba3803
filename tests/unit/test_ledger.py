"""The ledger over a real store: publishing once, leases with fencing, attempts, checkpoints, names."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.contracts import Attempt, CodeRef, InputError, Lease, StageResult
from stages.core.ledger import (
    AttemptRecord,
    LeaseHeld,
    LeaseLost,
    LeaseRecord,
    Ledger,
    NodeRecord,
    host_identity,
    process_alive,
    process_identity,
    upload_folder,
)
from tests.support import folder_with

KEY = "ab" * 32


def result_with(files: Iterable[FileEntry] = (), epoch: int = 1, run_id: str = "run") -> StageResult:
    """A manifest such as the runtime makes."""
    manifest = ArtifactManifest(type="Documents", digest="d" * 64, facets={}, files=tuple(files))
    attempt = Attempt(
        run_id=run_id, epoch=epoch, started_at="", ended_at="", wall_seconds=1, cpu_seconds=1, peak_rss_bytes=1, bytes_in=0, bytes_out=0
    )
    return StageResult(
        key=KEY, node="source", stage="probe_source", revision=1, config={}, identity={}, inputs={},
        outputs={"documents": manifest}, code=CodeRef(source_digest="s"), attempt=attempt,
    )  # fmt: skip


# --- manifests --------------------------------------------------------------------------------------------------------


def test_a_result_is_published_once_and_read_back(ledger: Ledger) -> None:
    assert ledger.manifest(KEY) is None
    lease = ledger.acquire(KEY, "one")
    ledger.publish(result_with(), lease)
    found = ledger.manifest(KEY)
    assert found is not None
    assert found[0] == result_with()


def test_a_second_publisher_is_refused_and_changes_nothing(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "one")
    ledger.publish(result_with(), lease)
    with pytest.raises(LeaseLost, match=f"node source: key {KEY[:12]} was published by another attempt"):
        ledger.publish(result_with(run_id="other"), lease)
    found = ledger.manifest(KEY)
    assert found is not None
    assert found[0].attempt.run_id == "run"


def test_a_forced_rerun_replaces_exactly_the_manifest_that_it_saw(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "one")
    ledger.publish(result_with(), lease)
    found = ledger.manifest(KEY)
    assert found is not None
    ledger.publish(result_with(run_id="second"), lease, replaces=found[1])
    with pytest.raises(LeaseLost):
        ledger.publish(result_with(run_id="third"), lease, replaces=found[1])
    now = ledger.manifest(KEY)
    assert now is not None
    assert now[0].attempt.run_id == "second"


@pytest.mark.parametrize("body", [b"not json", b"{}", b'{"schema_version": 1, "surprise": 2}'])
def test_a_damaged_manifest_is_named(ledger: Ledger, body: bytes) -> None:
    ledger.store.put(f"manifests/{KEY}.json", body)
    with pytest.raises(InputError, match=rf"s3://.*/manifests/{KEY}\.json is not a manifest of this version"):
        ledger.manifest(KEY)


def test_objects_that_went_missing_or_changed_size_are_found(ledger: Ledger, tmp_path: Path) -> None:
    prefix = f"objects/probe_source/{KEY}/000001/documents"
    files = upload_folder(ledger.store, prefix, folder_with(tmp_path, a="1", b__c__d="22", e="333"))
    assert [f.path for f in files] == ["a", "b/c/d", "e"]
    result = result_with(files)
    assert ledger.missing_objects(result) == []
    ledger.store.delete([f"{prefix}/b/c/d"])
    ledger.store.put(f"{prefix}/e", b"4444")
    assert ledger.missing_objects(result) == [f"{prefix}/b/c/d", f"{prefix}/e"]


# --- leases -----------------------------------------------------------------------------------------------------------


def test_a_held_lease_is_not_given_again_not_even_to_its_holder(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "one")
    assert lease == Lease(key=KEY, epoch=1, holder="one")
    for holder in ("two", "one"):
        with pytest.raises(LeaseHeld) as caught:
            ledger.acquire(KEY, holder)
        assert caught.value.record.holder == "one"


def test_the_epoch_only_grows(ledger: Ledger) -> None:
    epochs = []
    for holder in ("one", "two", "one"):
        lease = ledger.acquire(KEY, holder)
        epochs.append(lease.epoch)
        ledger.release(lease)
    assert epochs == [1, 2, 3]
    assert ledger.acquire("cd" * 32, "one").epoch == 1, "each key counts for itself"


@pytest.mark.parametrize("before", ["nobody", "expired", "released"])
def test_of_many_contenders_exactly_one_gets_the_lease(ledger: Ledger, before: str) -> None:
    if before != "nobody":
        old = ledger.acquire(KEY, "old", seconds=-1 if before == "expired" else 60)
        if before == "released":
            ledger.release(old)
    barrier = threading.Barrier(8)

    def contend(number: int) -> Lease | LeaseHeld:
        barrier.wait()
        try:
            return ledger.acquire(KEY, f"holder-{number}")
        except LeaseHeld as held:
            return held

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(contend, range(8)))
    winners = [o for o in outcomes if isinstance(o, Lease)]
    assert len(winners) == 1
    assert winners[0].epoch == (1 if before == "nobody" else 2)
    assert {o.record.holder for o in outcomes if isinstance(o, LeaseHeld)} == {winners[0].holder}
    ledger.check(winners[0])


def test_a_holder_that_was_overtaken_can_do_nothing_more(ledger: Ledger, tmp_path: Path) -> None:
    old = ledger.acquire(KEY, "old", seconds=-1)
    new = ledger.acquire(KEY, "new")
    assert new.epoch == old.epoch + 1
    folder = folder_with(tmp_path, weights="1")
    refused: list[Callable[[], object]] = [
        lambda: ledger.check(old),
        lambda: ledger.renew(old),
        lambda: ledger.publish(result_with(), old),
        lambda: ledger.save_checkpoint(old, 5, folder),
    ]
    for act in refused:
        with pytest.raises(LeaseLost, match=r"\(epoch 1\) is lost: it is now epoch 2 of 'new'"):
            act()
    ledger.release(old)  # quietly nothing
    assert ledger.manifest(KEY) is None
    assert ledger.checkpoint_steps(KEY) == []
    ledger.check(new)


def test_the_same_name_under_a_new_epoch_is_another_holder(ledger: Ledger) -> None:
    old = ledger.acquire(KEY, "one", seconds=-1)
    ledger.acquire(KEY, "one")
    with pytest.raises(LeaseLost):
        ledger.renew(old)


def test_an_expired_lease_that_nobody_took_is_still_good(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "one", seconds=-1)
    ledger.renew(lease)
    with pytest.raises(LeaseHeld):
        ledger.acquire(KEY, "two")
    ledger.publish(result_with(), lease)


def test_renewing_pushes_the_expiry_out(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "one", seconds=5)
    ledger.renew(lease, seconds=500)
    found = ledger.lease(KEY)
    assert found is not None
    assert found[0].expires_at > time.time() + 400
    assert found[0].epoch == 1


def test_a_takeover_between_reading_and_renewing_is_noticed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = ledger.acquire(KEY, "old", seconds=-1)
    rival = Ledger(ledger.store)
    write = ledger._put_lease

    def late(record: LeaseRecord, etag: str | None) -> None:
        rival.acquire(KEY, "rival")
        write(record, etag)

    monkeypatch.setattr(ledger, "_put_lease", late)
    with pytest.raises(LeaseLost, match="was taken over"):
        ledger.renew(lease)
    found = ledger.lease(KEY)
    assert found is not None
    assert found[0].holder == "rival"


def test_a_lease_that_is_gone_is_lost(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "one")
    ledger.store.delete([f"leases/{KEY}.json"])
    with pytest.raises(LeaseLost, match="it is now gone"):
        ledger.check(lease)


# --- processes that died ----------------------------------------------------------------------------------------------


@pytest.fixture
def child() -> Iterable[subprocess.Popen[bytes]]:
    """A process that waits to be killed."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def hold(ledger: Ledger, process: str, host: str) -> None:
    record = LeaseRecord(key=KEY, epoch=3, holder="other", expires_at=time.time() + 600, host=host, process=process)
    ledger.store.put(f"leases/{KEY}.json", record.model_dump_json().encode())


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(ledger: Ledger, child: subprocess.Popen[bytes]) -> None:
    hold(ledger, process_identity(child.pid), host_identity())
    with pytest.raises(LeaseHeld):
        ledger.acquire(KEY, "me")
    child.kill()
    child.wait()
    assert ledger.acquire(KEY, "me").epoch == 4


def test_a_process_of_another_machine_is_trusted_until_its_lease_expires(ledger: Ledger, child: subprocess.Popen[bytes]) -> None:
    hold(ledger, process_identity(child.pid), "another machine, or this one before it was booted")
    child.kill()
    child.wait()
    with pytest.raises(LeaseHeld):
        ledger.acquire(KEY, "me")


def test_a_process_is_known_by_number_and_start(child: subprocess.Popen[bytes]) -> None:
    identity = process_identity(child.pid)
    assert process_alive(identity)
    assert process_alive(process_identity())
    assert not process_alive(f"{child.pid}:1"), "the number was used by another process before"
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.005)
    assert not process_alive(identity), "a zombie does no more work"
    child.wait()
    assert not process_alive(identity)


# --- attempts, nodes, tags --------------------------------------------------------------------------------------------


def test_attempts_are_listed_oldest_first_without_their_logs(ledger: Ledger) -> None:
    def record(epoch: int, **more: Any) -> AttemptRecord:
        return AttemptRecord(key=KEY, epoch=epoch, node="n", run_id="r", launcher="l", started_at="t", **more)

    for epoch in (10, 2, 1):
        ledger.record_attempt(record(epoch))
        ledger.store.put(ledger.log_key(KEY, epoch), b"{}\n")
    ledger.record_attempt(record(2, exit_class="oom", message="out of memory"))
    found = ledger.attempts(KEY)
    assert [a.epoch for a in found] == [1, 2, 10]
    assert found[1].exit_class == "oom"


def test_nodes_are_remembered_by_profile(ledger: Ledger) -> None:
    ledger.set_node("tiny", NodeRecord(node="a", key="1", run_id="r", at="t"))
    ledger.set_node("tiny", NodeRecord(node="a", key="2", run_id="r", at="t"))
    ledger.set_node("tiny", NodeRecord(node="b", key="3", run_id="r", at="t"))
    ledger.set_node("tiny-two", NodeRecord(node="a", key="4", run_id="r", at="t"))
    assert {name: record.key for name, record in ledger.nodes("tiny").items()} == {"a": "2", "b": "3"}
    assert ledger.nodes("none") == {}


def test_tags_move(ledger: Ledger) -> None:
    ledger.tag("base-v1", {"key": "1"})
    ledger.tag("base-v1", {"key": "2"})
    ledger.tag("release/base", {"key": "3"})
    assert dict(ledger.tags()) == {"base-v1": {"key": "2"}, "release/base": {"key": "3"}}
