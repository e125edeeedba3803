"""`moxin gc` in the store: what goes, what stays, and that a manifest which appears in between wins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flows.garbage_items import TOGETHER, Garbage, Limits, remove_all
from flows.store_garbage import (
    ATTEMPTS,
    CHECKPOINTS,
    DAMAGED,
    PROBES,
    REHEARSALS,
    REPLACED,
    REQUESTS,
    RESULTS,
    TASKS,
    UNCOMMITTED,
    UNFINISHED,
    UPLOADS,
    StoreGarbage,
)
from stages.core import store_uploads
from stages.core.artifacts import FileEntry
from stages.core.errors import ExitClass
from stages.core.keys import sha256
from stages.core.leases import LeaseHeld, LeaseLost
from stages.core.ledger import Ledger
from stages.core.messages import CodeRef, Lease, StageRequest
from stages.core.records import AttemptOutcome, AttemptRecord, NodeRecord, TagRecord
from tests.support.probe_pipeline import published as input_of
from tests.support.probe_pipeline import result_with

A, B, C = "a" * 64, "b" * 64, "c" * 64
NOW = Limits(min_age=0.0, uploads_after=0.0)


def stored(ledger: Ledger, name: str, data: bytes = b"text") -> FileEntry:
    ledger.store.put(name, data)
    return FileEntry(path=name.rsplit("/", 1)[1], size=len(data), sha256=sha256(data), object=name)


def attempt(ledger: Ledger, key: str = A, *files: str, seconds: float = 60.0) -> tuple[Lease, list[FileEntry]]:
    """An attempt at work that has uploaded its files and not published."""
    lease = ledger.acquire(key, "tester", seconds)
    folder = f"objects/probe_source/{key}/{lease.epoch:06d}/documents/"
    return lease, [stored(ledger, folder + name) for name in files or ("0", "1")]


def publish(ledger: Ledger, lease: Lease, files: list[FileEntry], replaces: str | None = None, **fields: Any) -> None:
    result = result_with(files, lease.epoch).model_copy(update={"key": lease.key, **fields})
    ledger.publish(result, lease, replaces)


def make(ledger: Ledger, key: str = A, *more: FileEntry, **fields: Any) -> list[FileEntry]:
    lease, files = attempt(ledger, key)
    publish(ledger, lease, [*files, *more], **fields)
    ledger.release(lease)
    return [*files, *more]


def ask(ledger: Ledger, lease: Lease, **fields: Any) -> str:
    """Store the request of an attempt; its name."""
    request = StageRequest(
        run_id="run-1", node="source", stage="probe_source", revision=1, key=lease.key, lease=lease, config={},
        outputs={"documents": "Documents"}, code=CodeRef(source_digest="0" * 64), store=ledger.store.address,
        **({"inputs": {}} | fields),
    )  # fmt: skip
    row = f"requests/{lease.key}/{lease.epoch:06d}.json"
    ledger.store.put(row, request.model_dump_json().encode())
    return row


def found(ledger: Ledger, limits: Limits = NOW) -> dict[str, list[Garbage]]:
    kinds: dict[str, list[Garbage]] = {}
    for item in StoreGarbage(ledger, limits).find():
        kinds.setdefault(item.kind, []).append(item)
    return kinds


def sweep(ledger: Ledger, limits: Limits = NOW) -> tuple[int, int]:
    """Find, remove; how many objects and bytes went."""
    items = [item for item in StoreGarbage(ledger, limits).find() if not item.kept]
    done = [gone for _, gone in remove_all(items)]
    return sum(count for count, _ in done), sum(size for _, size in done)


def names(ledger: Ledger, prefix: str = "objects/") -> list[str]:
    return [row.key for row in ledger.store.list(prefix)]


def test_a_failed_attempt_goes_and_what_is_published_live_or_young_stays(ledger: Ledger) -> None:
    failed, _ = attempt(ledger, A, "half")
    ledger.release(failed)
    files = make(ledger, A)
    live, _ = attempt(ledger, B)
    ask(ledger, live)
    over, _ = attempt(ledger, C)
    ledger.release(over)
    (item, other) = found(ledger)[ATTEMPTS]
    assert (item.where, item.objects, item.bytes) == (f"objects/probe_source/{A}/000001/", 1, 4)
    assert other.key == C
    assert found(ledger, Limits()) == {}
    before = names(ledger, "")
    list(StoreGarbage(ledger, NOW).find())
    assert names(ledger, "") == before, "looking alone changes nothing"
    assert sweep(ledger) == (3, 12)
    assert names(ledger, f"objects/probe_source/{A}/") == sorted(
        [*(f.object for f in files), f"objects/probe_source/{A}/000002/DIGESTS.json"]
    )
    assert len(names(ledger, f"objects/probe_source/{B}/")) == 2
    assert sweep(ledger) == (0, 0)


def test_what_the_other_process_of_a_published_attempt_stored_goes(ledger: Ledger) -> None:
    """Its job had begun again, and both had stored outputs before one of them published."""
    lease, files = attempt(ledger, A)
    other = stored(ledger, f"objects/probe_source/{A}/{lease.epoch:06d}-0a1b2c3d/documents/0", b"longer")
    publish(ledger, lease, files)
    ledger.release(lease)
    (item,) = found(ledger)[ATTEMPTS]
    assert (item.kind, item.where, item.epoch) == (ATTEMPTS, other.object.removesuffix("documents/0"), lease.epoch)
    assert sweep(ledger) == (1, 6)
    assert ledger.store.get(files[0].object) is not None
    assert ledger.store.get(other.object) is None


def test_the_objects_of_a_result_that_cannot_be_read_stay(ledger: Ledger) -> None:
    lease, _ = attempt(ledger)
    ledger.release(lease)
    ledger.store.put(f"manifests/{A}.json", b"{}")
    (item,) = found(ledger)[ATTEMPTS]
    assert "moxin repair" in item.kept
    assert sweep(ledger) == (0, 0)
    assert len(names(ledger)) == 2


def test_tasks_files_that_a_result_links_stay(ledger: Ledger) -> None:
    linked = stored(ledger, f"work/probe_source/{A}/task-1/out.bin")
    stored(ledger, f"work/probe_source/{A}/task-1/receipt.json")
    stored(ledger, f"work/probe_source/{B}/task-1/receipt.json")
    make(ledger, A, linked)
    kinds = found(ledger)
    assert [(item.key, item.objects) for item in kinds[TASKS]] == [(A, 1)]
    assert [(item.key, bool(item.kept)) for item in kinds[UNFINISHED]] == [(B, True)]
    assert sweep(ledger) == (1, 4)
    assert names(ledger, f"work/probe_source/{A}/") == [linked.object]
    assert sweep(ledger, Limits(0.0, work_after=-10.0)) == (1, 4), "a day may be asked for"
    assert names(ledger, "work/") == [linked.object]


def test_a_replaced_result_stays_while_somebody_may_read_it(ledger: Ledger) -> None:
    make(ledger, A)
    old = names(ledger)
    held = ledger.manifest(A)
    assert held is not None
    reader = ledger.acquire(B, "tester")
    lease, files = attempt(ledger)
    publish(ledger, lease, files, held[1])
    ledger.release(lease)
    (item,) = found(ledger)[REPLACED]
    assert item.kept, "B is at work, and nobody knows what it reads"
    ref = input_of(ledger, b"text").model_copy(update={"key": A, "manifest": held[0].outputs["documents"]})
    row = ask(ledger, reader, inputs={"documents": (ref,)})
    assert "may read it" in found(ledger)[REPLACED][0].kept
    ledger.release(reader)
    kinds = found(ledger)
    assert (kinds[REPLACED][0].objects, kinds[REQUESTS][0].where) == (3, f"{row}/")
    assert sweep(ledger)[0] == 5, "and the object that this test's input was made from"
    assert not set(names(ledger)) & set(old)
    assert names(ledger, "requests/") == []


def test_an_input_whose_bytes_are_nowhere_else_stays(ledger: Ledger) -> None:
    make(ledger, A)
    held = ledger.manifest(A)
    assert held is not None
    ref = input_of(ledger, b"text").model_copy(update={"key": A, "manifest": held[0].outputs["documents"]})
    make(ledger, B, inputs={"documents": (ref,)})
    lease, files = attempt(ledger)
    other = {"documents": held[0].outputs["documents"].model_copy(update={"digest": "e" * 64, "files": tuple(files)})}
    publish(ledger, lease, files, held[1], outputs=other)
    ledger.release(lease)
    assert "a result was made from it" in found(ledger)[REPLACED][0].kept
    assert sweep(ledger) == (1, 4), "of this test's own input alone"


def test_checkpoints_go_with_their_result_and_uncommitted_ones_go(ledger: Ledger) -> None:
    for key, step, commit in ((A, 1, True), (B, 1, True), (B, 2, False), (C, 3, False)):
        stored(ledger, f"checkpoints/{key}/{step:012d}/000001/weights")
        if commit:
            stored(ledger, f"checkpoints/{key}/{step:012d}/COMMIT.json", b"{}")
            stored(ledger, f"checkpoints/{key}/rows/000001/000000")
    live = ledger.acquire(C, "tester")
    make(ledger, A)
    kinds = found(ledger)
    assert [item.key for item in kinds[CHECKPOINTS]] == [A, A]
    assert [item.where for item in kinds[UNCOMMITTED]] == [f"checkpoints/{B}/{2:012d}/"]
    assert [(item.key, bool(item.kept)) for item in kinds[UNFINISHED]] == [(B, True), (B, True)]
    sweep(ledger)
    assert {name.split("/")[1] for name in names(ledger, "checkpoints/")} == {B, C}
    assert ledger.checkpoint_steps(B) == [1]
    ledger.release(live)
    sweep(ledger)
    assert {name.split("/")[1] for name in names(ledger, "checkpoints/")} == {B}


@pytest.mark.parametrize(
    ("told", "published", "stays"),
    [(None, False, True), (ExitClass.PREEMPTED, False, True), (ExitClass.OK, False, False), (None, True, False)],
    ids=["nothing", "preempted", "ok", "published"],
)
def test_a_job_that_told_its_end_is_at_work_no_more(
    ledger: Ledger, told: ExitClass | None, published: bool, stays: bool
) -> None:
    """Its follower died, and nobody runs a key again that is published: what it left would stay for ever. One that was
    preempted may be started again by its scheduler.
    """
    lease, files = attempt(ledger)
    stored(ledger, f"checkpoints/{A}/{1:012d}/000001/weights")
    if published:
        publish(ledger, lease, files)
    record = AttemptRecord(key=A, epoch=1, node="n", run_id="r", launcher="slurm", started_at="t", job="4711")
    ledger.record_attempt(record)
    row = ledger.lease(A)
    assert row is not None
    ledger._put_lease(row[0].model_copy(update={"seconds": -5.0, "host": "x"}), row[1])
    if told:
        ledger.leave_outcome(AttemptOutcome(key=A, epoch=1, ended_at="t", exit_class=told))
    sweep(ledger)
    assert bool(names(ledger, "checkpoints/")) is stays


def test_unfinished_uploads_probes_and_what_was_set_aside(ledger: Ledger) -> None:
    store = ledger.store
    make(ledger, A)
    live, _ = attempt(ledger, B)
    for key in (A, B):
        name = f"{store.address.prefix}objects/probe_source/{key}/000009/big"
        begun = store._client.create_multipart_upload(Bucket=store.address.bucket, Key=name)
        store._client.upload_part(
            Bucket=store.address.bucket, Key=name, UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * 100
        )
    stored(ledger, "probe/1")
    stored(ledger, "damaged/manifests/x.json.2026")
    kinds = found(ledger)
    assert [(item.key, item.bytes) for item in kinds[UPLOADS]] == [(A, 100)]
    store._clock_offset = (store._clock_offset or 0.0) - 2.0
    assert UPLOADS in found(ledger), "a store's clock is right to a second or two"
    assert UPLOADS not in found(ledger, Limits(min_age=0.0)), "an hour old at least"
    assert kinds[PROBES][0].objects == 1
    assert kinds[DAMAGED][0].kept
    assert sweep(ledger) == (2, 104)
    assert [upload.key.split("/")[2] for upload in store_uploads.unfinished(store)] == [B]
    assert sweep(ledger, Limits(0.0, damaged=True)) == (1, 4)
    ledger.release(live)


def test_results_go_when_asked_but_never_what_a_name_or_an_attempt_needs(ledger: Ledger) -> None:
    """A is named, and was made from B; nobody needs C, whose file another result has linked."""
    shared = make(ledger, C)[0]
    make(ledger, B)
    ref = input_of(ledger, b"text", key=f"objects/up/{B}/000001/0").model_copy(update={"key": B})
    make(ledger, A, shared, inputs={"documents": (ref,)})
    ledger.set_node("tiny", NodeRecord(node="source", key=A, run_id="r", at=""))
    (item,) = found(ledger)[RESULTS]
    assert (item.key, "--also results" in item.kept) == (C, True)
    assert RESULTS not in found(ledger, Limits(0.0, results_after=86_400.0)), "too young"
    old = Limits(0.0, results_after=0.0)
    ledger.store.put("nodes/tiny/other.json", b"{")
    assert found(ledger, old)[RESULTS][0].kept, "a name that cannot be read may name it"
    ledger.store.delete(["nodes/tiny/other.json"])
    kept = TagRecord(name="kept", key=C, node="source", created_by="tester", created_at="")
    assert ledger.set_tag(kept)
    assert RESULTS not in found(ledger, old), "it has a tag"
    assert ledger.remove_tag("kept")
    work = ledger.acquire(C, "tester")
    assert RESULTS not in found(ledger, old), "somebody is at work on it"
    ledger.release(work)
    (item,) = found(ledger, old)[RESULTS]
    ((_, gone),) = remove_all([item])
    assert gone[0] == 3
    assert ledger.manifest(C) is None
    assert names(ledger, f"objects/probe_source/{C}/") == [shared.object]
    assert ledger.missing_objects(ledger.manifest(A)[0]) == []  # type: ignore[index]


def test_what_is_removed_together_costs_no_look_at_all_that_stays_for_each(ledger: Ledger) -> None:
    """Requests for results that nobody needs, and for replaced ones, beside names and results that stay."""
    asked = list[str]()
    ledger.store._client.meta.events.register("before-call.s3", lambda model, **_: asked.append(model.name))
    cost = dict[tuple[str, int], float]()
    for stay in (4, 24):
        for number in range(stay):
            key = sha256(f"stays {number}".encode())
            if ledger.manifest(key) is None:
                make(ledger, key)
                ledger.set_node("tiny", NodeRecord(node=f"n{number}", key=key, run_id="r", at=""))
        for number in range(10):
            make(ledger, sha256(f"{stay} goes {number}".encode()))
            key = sha256(f"{stay} replaced {number}".encode())
            make(ledger, key)
            lease, files = attempt(ledger, key)
            publish(ledger, lease, files, ledger.manifest(key)[1])  # type: ignore[index]
            ledger.release(lease)
            ledger.set_node("tiny", NodeRecord(node=f"replaced{number}", key=key, run_id="r", at=""))
        items = [item for item in StoreGarbage(ledger, Limits(0.0, results_after=0.0)).find() if not item.kept]
        for kind in (REPLACED, RESULTS):
            some = [item for item in items if item.kind == kind]
            assert len(some) >= 10
            asked.clear()
            done = [gone for _, gone in remove_all(some)]
            assert all(count for count, _ in done)
            cost[kind, stay] = len(asked) / len(some)
            print(f"{kind}, {stay} results that stay: {cost[kind, stay]:.1f} requests for each that goes")
    for kind in (REPLACED, RESULTS):
        assert cost[kind, 24] - cost[kind, 4] < 20, "one look for all: not one for each"
        assert cost[kind, 24] < 40


def test_results_are_removed_while_the_leases_of_the_others_are_held(ledger: Ledger) -> None:
    """Who takes a key in between finds it held, or published no more; a key that somebody works on stays."""
    for key in (A, B, C):
        make(ledger, key)
    items = found(ledger, Limits(0.0, results_after=0.0))[RESULTS]
    work = ledger.acquire(B, "tester")
    ask(ledger, work)
    assert len(items) == 3 < TOGETHER
    gone = {}
    for item, (count, _) in remove_all(items):
        gone[item.key] = count
        with pytest.raises(LeaseHeld):
            ledger.acquire(item.key, "somebody")
    assert (gone[A], gone[B], gone[C]) == (4, 0, 4)
    assert [ledger.manifest(key) is not None for key in (A, B, C)] == [False, True, False]
    ledger.release(ledger.acquire(A, "somebody"))
    ledger.release(work)


def test_who_stops_in_the_middle_gives_all_leases_back(ledger: Ledger) -> None:
    for key in (A, B):
        make(ledger, key)
    removal = remove_all(found(ledger, Limits(0.0, results_after=0.0))[RESULTS])
    next(removal)
    removal.close()
    for key in (A, B):
        ledger.release(ledger.acquire(key, "somebody"))
    assert [ledger.manifest(key) for key in (A, B)] == [None, None]
    assert len([name for name in names(ledger) if "/documents/" in name]) == 2, "an attempt that failed, from now on"
    assert sweep(ledger)[0] == 3
    assert names(ledger) == []


# --- races ------------------------------------------------------------------------------------------------------------


class Interrupting:
    """Does something once, before the n-th call that a ledger's store makes."""

    def __init__(self, ledger: Ledger, number: int, act: Callable[[], None]) -> None:
        self.calls, self.done = 0, False
        self._number, self._act, self._ask = number, act, ledger.store._patiently
        ledger.store._patiently = self  # type: ignore[method-assign,assignment]

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == self._number:
            self.done = True
            self._act()
        return self._ask(*arguments)


@pytest.mark.parametrize("lost", [False, True], ids=["alive", "without-renewal"])
def test_an_attempt_that_publishes_meanwhile_keeps_its_objects(ledger: Ledger, store: Any, lost: bool) -> None:
    """Whenever it publishes: before any one of the requests that the collection makes. lost: its lease had run out
    before, which is no reason not to publish while nobody has taken it.
    """
    number, done = 0, True
    while done:
        number += 1
        key = sha256(str(number).encode())
        other = Ledger(type(store)(store.address, store._client))
        lease, files = attempt(other, key, "0", seconds=0.0 if lost else 60.0)
        if lost:  # it runs out now, not in a second: the holder's process is another machine's
            row = other.lease(key)
            assert row is not None
            other._put_lease(row[0].model_copy(update={"seconds": -5.0, "host": "x"}), row[1])

        def act(lease: Lease = lease, files: list[FileEntry] = files, other: Ledger = other) -> None:
            try:
                publish(other, lease, files)
            except LeaseLost:
                return
            other.release(lease)

        mine = Ledger(type(store)(store.address, store._client))
        mine.store.now()
        hook = Interrupting(mine, number, act)
        sweep(mine)
        done = hook.done
        held = other.manifest(key)
        if not done:
            assert held is None
            assert bool(names(other, f"objects/probe_source/{key}/")) is not lost
        elif held is not None:
            assert other.missing_objects(held[0]) == []
        else:
            assert lost, "only an attempt whose lease was taken may be refused"
        for prefix in ("objects/", "manifests/", "leases/", "attempts/"):
            other.store.delete(names(other, prefix))
    assert number > 12


def test_a_rehearsal_goes_whole_when_that_is_asked_for(ledger: Ledger) -> None:
    names = [f"rehearsals/7b-wiring/{name}" for name in ("report.json", f"manifests/{A}.json", f"leases/{A}.json")]
    for name in (*names, "rehearsals/7b-shape/report.json"):
        stored(ledger, name)
    kept = found(ledger)[REHEARSALS]
    assert {(item.where, item.objects) for item in kept} == {("rehearsals/7b-wiring/", 3), ("rehearsals/7b-shape/", 1)}
    assert all("--also rehearsals=DAYS" in item.kept for item in kept)
    (young, _) = found(ledger, Limits(min_age=60.0, rehearsals_after=0.0))[REHEARSALS]
    assert "younger" in young.kept
    for item in found(ledger, Limits(min_age=0.0, rehearsals_after=0.0))[REHEARSALS]:
        assert item.kept == ""
        list(remove_all([item]))
    assert list(ledger.store.list("rehearsals/")) == []
