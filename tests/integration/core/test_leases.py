"""Leases over a real store: one holder at a time, by the store's clock; fencing; processes that died."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.core import leases
from stages.core.leases import LeaseHeld, LeaseLost, LeaseTakenOver
from stages.core.ledger import Ledger
from stages.core.messages import Lease
from stages.core.processes import host_identity, process_alive, process_identity
from stages.core.records import AttemptRecord, LeaseRecord
from stages.core.store import Store
from tests.support.checkpoints import save_checkpoint
from tests.support.probe_pipeline import KEY, folder_with, result_with


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
        lambda: save_checkpoint(ledger, old, 5, folder),
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
    renewed = time.time()
    ledger.renew(lease, seconds=500)
    found = ledger.lease(KEY)
    assert found is not None
    assert found[0].expires_at >= renewed + 500
    assert found[0].epoch == 1


def test_a_takeover_between_reading_and_renewing_is_noticed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = ledger.acquire(KEY, "old", seconds=-1)
    rival = Ledger(ledger.store)
    write = ledger._put_lease

    def late(record: LeaseRecord, etag: str | None) -> None:
        rival.acquire(KEY, "rival")
        write(record, etag)

    monkeypatch.setattr(ledger, "_put_lease", late)
    with pytest.raises(LeaseLost, match="it is now epoch 2 of 'rival'"):
        ledger.renew(lease)
    found = ledger.lease(KEY)
    assert found is not None
    assert found[0].holder == "rival"


def test_a_lease_that_is_gone_is_lost(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "one")
    ledger.store.delete([f"leases/{KEY}.json"])
    with pytest.raises(LeaseLost, match="it is now gone"):
        ledger.check(lease)


@pytest.mark.parametrize("off", [-90.0, 90.0, -86_400.0, 86_400.0])
def test_the_clock_of_the_holder_or_of_the_waiter_decides_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    """A holder elsewhere whose clock is wrong: its lease is held while it is renewed, and free a minute after, as the
    store's clock has it.
    """
    record = LeaseRecord(key=KEY, epoch=3, holder="other", expires_at=time.time() + off + 60, host="elsewhere")
    ledger.store.put(f"leases/{KEY}.json", record.model_dump_json().encode())
    real = time.time
    for mine in (0.0, off):
        monkeypatch.setattr(time, "time", lambda mine=mine: real() + mine)
        with pytest.raises(LeaseHeld):
            Ledger(ledger.store).acquire(KEY, "me")
    monkeypatch.undo()
    later(ledger, monkeypatch, 50)
    with pytest.raises(LeaseHeld, match=r"held by other, who renewed it 5. s ago"):
        ledger.acquire(KEY, "me")
    later(ledger, monkeypatch, 62)
    assert ledger.acquire(KEY, "me").epoch == 4


def later(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the store's clock go ahead."""
    get = Store.get_with_age

    def aged(store: Store, key: str) -> tuple[bytes, str, float] | None:
        found = get(store, key)
        return None if found is None else (found[0], found[1], found[2] + seconds)

    monkeypatch.setattr(ledger.store, "get_with_age", lambda key: aged(ledger.store, key))


def test_the_store_tells_how_old_an_object_is(store: Store) -> None:
    store.put("x", b"1")
    time.sleep(2.1)
    found = store.get_with_age("x")
    assert found is not None
    assert found[2] >= 1
    store.put("x", b"2")
    renewed = store.get_with_age("x")
    assert renewed is not None
    assert renewed[2] < found[2], "written anew"


def test_an_epoch_is_not_given_twice_when_the_lease_is_gone(ledger: Ledger) -> None:
    """A second attempt of one number would write over the objects of what is published."""
    for epoch in (1, 2):
        ledger.record_attempt(AttemptRecord(key=KEY, epoch=epoch, node="n", run_id="r", launcher="l", started_at="t"))
    assert ledger.acquire(KEY, "me").epoch == 3
    other = "cd" * 32
    ledger.store.put(f"manifests/{other}.json", result_with(epoch=7).model_dump_json().encode()[:-9])
    assert ledger.acquire(other, "me").epoch == 8, "also from a manifest that is cut"


def test_who_takes_over_from_the_dead_ends_their_attempt(ledger: Ledger) -> None:
    old = ledger.acquire(KEY, "old", seconds=-1)
    ledger.record_attempt(AttemptRecord(key=KEY, epoch=old.epoch, node="n", run_id="r", launcher="l", started_at="t"))
    ledger.acquire(KEY, "new")
    (attempt,) = ledger.attempts(KEY)
    assert (attempt.exit_class, bool(attempt.ended_at)) == ("preempted", True)
    assert "whoever followed it died" in attempt.message


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


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(
    ledger: Ledger, child: subprocess.Popen[bytes]
) -> None:
    hold(ledger, process_identity(child.pid), host_identity())
    with pytest.raises(LeaseHeld):
        ledger.acquire(KEY, "me")
    child.kill()
    child.wait()
    assert ledger.acquire(KEY, "me").epoch == 4


def test_a_process_of_another_machine_is_trusted_until_its_lease_expires(
    ledger: Ledger, child: subprocess.Popen[bytes]
) -> None:
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


def test_a_former_follower_can_neither_renew_nor_release_a_lease_that_was_taken_over(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job keeps its lease and publishes; of the two control planes that know it, the later one alone follows it."""
    former = ledger.acquire(KEY, "run", seconds=-1)
    monkeypatch.setattr(leases, "process_identity", lambda: "4711:1")
    taken_over = ledger.take_over(KEY)
    assert taken_over == former, "the job was started with it"
    monkeypatch.undo()
    with pytest.raises(LeaseTakenOver, match="taken over by another process, which follows the job now"):
        ledger.renew(former)
    ledger.release(former)  # quietly nothing
    held = ledger.lease(KEY)
    assert held is not None
    assert (held[0].holder, held[0].process) == ("run", "4711:1")
    monkeypatch.setattr(leases, "process_identity", lambda: "4711:1")
    ledger.renew(taken_over)
    monkeypatch.undo()
    ledger.publish(result_with(), former)
