"""The protocol of leases, heartbeats, checkpoints, publishing and garbage as a model: the ledger's own code over a
store in memory that drops, delays, doubles and reorders requests and loses answers, with programs that are stopped
between any two requests for any time, die, and have clocks of their own.

`tests/fault/protocol/publish.pml` has the heart of it for SPIN, which looks at every order (`make protocol`).
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from flows.garbage_items import HOUR, Limits, remove_all
from flows.idle_keys import at_work
from flows.store_garbage import LEASE, StoreGarbage
from stages.core.artifacts import FileEntry
from stages.core.checkpoints import ROWS
from stages.core.errors import ExitClass, StageError
from stages.core.keys import sha256
from stages.core.leases import LeaseHeld, LeaseLost, LeaseTakenOver
from stages.core.ledger import Ledger
from stages.core.messages import CodeRef, Lease, StageRequest, StoreAddress
from stages.core.records import LEASE_SECONDS, AttemptOutcome, AttemptRecord, LeaseRecord, epoch_of, now
from stages.core.store_errors import Conflict, Damaged
from tests.support.memory_store import FATES, Actor, Machine, World
from tests.support.probe_pipeline import result_with

KEYS = ("a" * 64, "b" * 64)
LONGEST = 600.0
"""Seconds that a request can be on its way."""
STAGE = "probe_source"


class Protocol(RuleBasedStateMachine):
    @initialize(dated=st.booleans(), late_lists=st.sampled_from([0.0, 0.0, 30.0, 300.0]))
    def begin(self, dated: bool, late_lists: float) -> None:
        self.world, self.late_lists = World(dated, late_lists), late_lists
        self.world.watch = self.watch
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(self.world.entered())
        self.epochs: dict[str, list[int]] = {key: [] for key in KEYS}
        self.manifests: dict[str, list[tuple[int, bytes]]] = {key: [] for key in KEYS}
        self.numbers = 0
        self.errors: list[BaseException] = []
        self.jobs: dict[str, list[Actor]] = {}
        """Programs of each job: its scheduler may begin it once more while the first lives on."""
        self.again: dict[str, Any] = {}
        """Begins a job once more."""
        self.written = 0
        self.stray: set[str] = set()
        """Markers of checkpoints that arrived late."""

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.in_the_end()
        finally:
            self.stack.close()

    # --- what programs do -------------------------------------------------------------------------------------

    def program(self, kind: str, what: Any, off: float = 0.0, here: bool = False, **marks: Any) -> Actor:
        self.numbers += 1
        machine = Machine(f"{'here' if here else 'far'}:{self.numbers}", off)

        def guarded(actor: Actor) -> None:
            try:
                what(actor)
            except (StageError, Conflict, LeaseHeld):
                pass  # one of the ends that users are told of
            except Exception as error:  # found by `look`: an error in a program of its own must not pass unseen
                self.errors.append(error)

        return self.world.start(kind, guarded, machine, **marks)

    def attempt(self, actor: Actor, key: str, steps: int, detached: bool) -> None:
        """As flows/execute.py: look, take, look again, work, write down how it ended, give back."""
        ledger = Ledger(self.world.store())
        before = ledger.manifest(key)
        if before is not None and not actor.forced:
            return
        replaces = before[1] if before else None
        if detached and (lease := self.taken_over(ledger, key)):
            self.follow(actor, ledger, lease)
            return
        lease = ledger.acquire(key, f"run {actor.machine.name}")
        actor.marks["lease"] = lease
        present = ledger.manifest(key)
        if present is not None and (replaces is None or present[1] != replaces):
            ledger.release(lease)
            return
        if replaces:
            ledger.drop_checkpoints(key, before=lease.epoch)
        record = AttemptRecord(
            key=key,
            epoch=lease.epoch,
            node="n",
            run_id="r",
            launcher="x",
            started_at=now(),
            job="1" if detached else "",
        )
        ledger.record_attempt(record)
        if detached:
            forced, name = actor.forced, f"{key}/{lease.epoch}"
            begin = lambda: self.program("job", lambda me: self.work(me, lease, steps, replaces), forced=forced)  # noqa: E731
            self.jobs[name], self.again[name] = [begin()], begin
            self.follow(actor, ledger, lease)
            return
        try:
            self.work(actor, lease, steps, replaces)
        finally:
            self.over(ledger, lease)

    def over(self, ledger: Ledger, lease: Lease) -> None:
        record = ledger.attempt(lease.key, lease.epoch)
        if record is not None:
            ledger.record_attempt(record.model_copy(update={"ended_at": now(), "exit_class": ExitClass.OK.value}))
        ledger.release(lease)
        manifest = ledger.manifest(lease.key)
        if manifest is not None and manifest[0].attempt.epoch == lease.epoch:
            ledger.drop_checkpoints(lease.key, before=lease.epoch + 1)

    def taken_over(self, ledger: Ledger, key: str) -> Lease | None:
        there = ledger.lease(key)
        if there is None or there[0].live or not there[0].holder:
            return None
        last = ledger.attempt(key, there[0].epoch)
        if last is None or not last.job or last.ended_at or not self.at_work(f"{key}/{there[0].epoch}"):
            return None
        return ledger.take_over(key)

    def at_work(self, job: str) -> list[Actor]:
        """Programs of a job that run."""
        return [one for one in self.jobs.get(job, ()) if one in self.world.running()]

    def follow(self, actor: Actor, ledger: Ledger, lease: Lease) -> None:
        """As flows/running_stages.py: renew until the job is over; let it go when somebody else follows it."""
        actor.marks["lease"], job = lease, f"{lease.key}/{lease.epoch}"
        while self.at_work(job):
            self.world.pause("sleep")
            try:
                ledger.renew(lease)
            except LeaseTakenOver:
                return
            except LeaseLost:
                for one in self.at_work(job):
                    self.world.crash(one)
        self.over(ledger, lease)

    def work(self, actor: Actor, lease: Lease, steps: int, replaces: str | None) -> None:
        """A stage, as stages/core/runtime.py: checkpoints, outputs, its manifest. No two processes write the same."""
        ledger = Ledger(self.world.store())
        request = StageRequest(
            run_id="r", node="n", stage=STAGE, revision=1, key=lease.key, lease=lease, config={}, inputs={},
            outputs={"documents": "Documents"}, code=CodeRef(source_digest="0" * 64), store=StoreAddress(bucket="b"),
        )  # fmt: skip
        ledger.store.put(f"requests/{lease.key}/{lease.epoch:06d}.json", request.model_dump_json().encode())
        ledger.check(lease)
        if ledger.published_by(lease, replaces) is None:
            ledger.begin_process(lease, 0)
            self.train(ledger, lease, steps)
            if ledger.published_by(lease, replaces) is None:
                self.publish(ledger, lease, replaces)
        outcome = AttemptOutcome(key=lease.key, epoch=lease.epoch, ended_at=now(), exit_class=ExitClass.OK)
        ledger.leave_outcome(outcome)

    def train(self, ledger: Ledger, lease: Lease, steps: int) -> None:
        first, rows = self.resumed(ledger, lease.key)
        for step in range(first + 1, first + 1 + steps):
            ledger.check(lease)
            folder = ledger.folder(lease)
            rows.append(self.put(ledger, f"checkpoints/{lease.key}/{ROWS}/{folder}/{len(rows):06d}"))
            weights = self.put(ledger, f"checkpoints/{lease.key}/{step:012d}/{folder}/weights")
            with contextlib.suppress(Damaged):  # it is left out, and the next one is tried
                ledger.commit_checkpoint(lease, step, [weights, *rows])

    def publish(self, ledger: Ledger, lease: Lease, replaces: str | None) -> None:
        prefix = f"objects/{STAGE}/{lease.key}/{ledger.folder(lease)}/documents"
        files = [self.put(ledger, f"{prefix}/{number}") for number in range(2)]
        result = result_with(files, lease.epoch).model_copy(update={"key": lease.key})
        attempt = result.attempt.model_copy(update={"start": ledger.start})
        try:
            ledger.publish(result.model_copy(update={"attempt": attempt}), lease, replaces)
        except LeaseLost:
            if ledger.published_by(lease, replaces) is None:
                raise

    def resumed(self, ledger: Ledger, key: str) -> tuple[int, list[FileEntry]]:
        """The step to go on from, that of the newest checkpoint which is whole, and its rows."""
        for step in reversed(ledger.checkpoint_steps(key)):
            try:
                files = ledger.checkpoint(key, step).files
                bodies = [ledger.store.get(entry.object) for entry in files]
                if all(b and sha256(b[0]) == e.sha256 for b, e in zip(bodies, files, strict=True)):
                    return step, list(files[1:])
            except Damaged:
                continue
        return 0, []

    def put(self, ledger: Ledger, name: str) -> FileEntry:
        self.written += 1
        body = f"text {self.written}".encode()
        ledger.store.put(name, body)
        return FileEntry(path=name.rsplit("/", 1)[1], size=len(body), sha256=sha256(body), object=name)

    def collect(self, actor: Actor) -> None:
        items = list(StoreGarbage(Ledger(self.world.store()), Limits()).find())
        for _ in remove_all([item for item in items if not item.kept]):
            pass

    # --- rules ------------------------------------------------------------------------------------------------

    clocks = st.sampled_from([0.0, 0.0, -90.0, 90.0, 86_400.0, -86_400.0])

    @rule(
        key=st.sampled_from(KEYS[:1] * 3 + KEYS[1:]), forced=st.booleans(), detached=st.booleans(), off=clocks,
        steps=st.integers(0, 3), here=st.booleans(),
    )  # fmt: skip
    def somebody_runs(self, key: str, forced: bool, detached: bool, off: float, steps: int, here: bool) -> None:
        if len(self.world.running()) < 4:
            self.program(
                "run", lambda me: self.attempt(me, key, steps, detached), off, here and not detached, forced=forced
            )

    @precondition(lambda self: self.again and len(self.world.running()) < 5)
    @rule(
        number=st.integers(0, 1), count=st.integers(0, 40),
        what=st.sampled_from(["", "PUT checkpoints", "PUT objects", "PUT manifests"]),
    )  # fmt: skip
    def a_job_begins_again(self, number: int, what: str, count: int) -> None:
        """Its scheduler puts it back into the queue, whatever became of it; what: how far the one before has come."""
        name = list(self.again)[-1 - number % len(self.again)]
        if what and (before := self.at_work(name)):
            self.goes_on(before[0], what)
        later = self.again[name]()
        self.jobs[name].append(later)
        for _ in range(count):
            self.world.step(later, "right")
        self.look()

    @rule(off=clocks)
    def somebody_collects(self, off: float) -> None:
        if not any(actor.kind == "gc" for actor in self.world.running()):
            self.program("gc", self.collect, off)

    @precondition(lambda self: self.world.running())
    @rule(number=st.integers(0, 7), count=st.integers(1, 30), fate=st.sampled_from(FATES))
    def some_requests(self, number: int, count: int, fate: str) -> None:
        running = self.world.running()
        actor = running[number % len(running)]
        for _ in range(count - 1):
            self.world.step(actor, "right")
        self.world.step(actor, fate)
        self.look()

    @precondition(lambda self: self.world.running())
    @rule(
        number=st.integers(0, 7),
        what=st.sampled_from(["GET leases", "PUT leases", "PUT manifests", "DELETE", "PUT objects", "LIST objects"]),
        and_it=st.booleans(),
    )
    def all_before(self, number: int, what: str, and_it: bool) -> None:
        """A program goes on until it is about to make a request of a kind; and_it: and makes it."""
        running = self.world.running()
        actor = running[number % len(running)]
        self.goes_on(actor, what)
        if and_it:
            self.world.step(actor, "right")
        self.look()

    def goes_on(self, actor: Actor, what: str) -> None:
        for turn in range(60):
            if turn and actor.waits_for.startswith(what):
                break
            self.world.step(actor, "right")

    @precondition(lambda self: any("lease" in actor.marks for actor in self.world.running()))
    @rule(number=st.integers(0, 7))
    def a_heartbeat(self, number: int) -> None:
        holders = [actor for actor in self.world.running() if "lease" in actor.marks]
        holder = holders[number % len(holders)]
        beat = self.world.start("beat", lambda me: self.renew(holder), holder.machine)
        self.world.step(beat, "right")

    def renew(self, holder: Actor) -> None:
        with contextlib.suppress(StageError, Conflict):
            Ledger(self.world.store()).renew(holder.marks["lease"])

    @rule(seconds=st.sampled_from([1.0, 20.0, 70.0, 650.0, 4000.0, 90_000.0]))
    def time_passes(self, seconds: float) -> None:
        for actor in self.world.running():  # garbage.md, "What remains"
            stopped = self.world.seconds + seconds - actor.since
            if actor.waits_for.startswith("PUT manifests/") and stopped > HOUR:
                self.world.crash(actor)
        self.world.wait(seconds, LONGEST)
        self.look()

    @precondition(lambda self: self.world.running())
    @rule(number=st.integers(0, 7))
    def one_dies(self, number: int) -> None:
        running = self.world.running()
        self.world.crash(running[number % len(running)])

    @precondition(lambda self: self.world.late)
    @rule(number=st.integers(0, 7))
    def something_arrives(self, number: int) -> None:
        self.world.deliver(number)
        self.look()

    # --- what must hold ---------------------------------------------------------------------------------------

    def look(self) -> None:
        if self.errors:
            raise self.errors[0]

    def watch(self, act: str, key: str, body: bytes | None) -> None:
        """Each change of the store, as it is made. What is wrong is raised by `look`, outside of the programs."""
        parts = key.split("/")
        try:
            if parts[0] == "leases" and body is not None:
                self.lease_changed(parts[1].removesuffix(".json"), json.loads(body))
            elif parts[0] == "manifests" and body is not None:
                self.manifest_changed(parts[1].removesuffix(".json"), body)
            elif act == "delete" and parts[0] == "checkpoints" and self.world.current:
                self.checkpoint_removed(self.world.current, epoch_of(parts[3]))
            if parts[-1] == "COMMIT.json" and body is not None and self.world.current is None:
                self.stray.add(key)
            if act == "delete" or parts[0] in ("manifests", "objects", "checkpoints"):
                self.whole()
        except AssertionError as error:
            self.errors.append(error)

    def lease_changed(self, key: str, record: dict[str, Any]) -> None:
        """Epochs only grow, each is given once, and only the process that follows an attempt writes under it."""
        epochs = self.epochs[key]
        assert not epochs or record["epoch"] in (epochs[-1], epochs[-1] + 1), f"epoch {record['epoch']} after {epochs}"
        if not epochs or record["epoch"] > epochs[-1]:
            epochs.append(record["epoch"])

    def checkpoint_removed(self, actor: Actor, epoch: int) -> None:
        """An attempt removes nothing of those after it."""
        lease = actor.marks.get("lease")
        assert lease is None or epoch <= lease.epoch, f"epoch {lease.epoch} removes a checkpoint's file of {epoch}"

    def manifest_changed(self, key: str, body: bytes) -> None:
        """A key is published once, unless somebody forced it, and never by an attempt before the one that did."""
        epoch = json.loads(body)["attempt"]["epoch"]
        versions = self.manifests[key]
        if versions and versions[-1][1] != body:
            assert epoch > versions[-1][0], f"epoch {epoch} was published over {versions[-1][0]}"
        versions.append((epoch, body))

    def whole(self) -> None:
        """What is visible is whole."""
        for name, row in self.world.rows.items():
            if name.startswith("manifests/"):
                files = json.loads(row.body)["outputs"]["documents"]["files"]
            elif name.endswith("/COMMIT.json") and name not in self.stray:
                files = json.loads(row.body)["files"]
            else:
                continue
            if self.late_lists:  # whoever clears them away may not see the marker that names them
                files = [entry for entry in files if f"/{ROWS}/" not in entry["object"]]
            rows = {entry["object"]: self.world.rows.get(entry["object"]) for entry in files}
            lost = [object for object, row in rows.items() if row is None]
            assert not lost, f"{name} is visible, and {lost} is gone"
            bodies = {entry["object"]: sha256(rows[entry["object"]].body) for entry in files}
            torn = [entry["object"] for entry in files if bodies[entry["object"]] != entry["sha256"]]
            assert not torn, f"{name} is visible, and {torn} has other bytes"

    def lease_of(self, key: str) -> LeaseRecord | None:
        held = Ledger(self.world.store()).lease(key)
        return held[0] if held else None

    def in_the_end(self) -> None:
        """Nothing stands in the way of the next run, and what nobody needs can go."""
        for actor in self.world.running():
            self.world.crash(actor)
        while self.world.late:
            self.world.deliver(0)
        self.look()
        self.world.late_lists = 0.0  # what had been late has come: garbage, too, can be found now
        self.world.wait(max(LEASE_SECONDS, LEASE) + 5, LONGEST)
        for forced in (False, True):
            for key in KEYS:  # a forced job whose end nobody saw counts as at work until somebody forces it again
                if not forced or at_work(Ledger(self.world.store()), self.lease_of(key)):
                    self.program("run", lambda me, key=key: self.attempt(me, key, 1, False), forced=forced)
            while self.world.running():
                for actor in self.world.running():
                    self.world.step(actor, "right")
            self.look()
        for key in KEYS:
            assert f"manifests/{key}.json" in self.world.rows, "the next run made no result"
            held = self.lease_of(key)
            assert held is None or not held.live, "a lease outlives its holder"
        self.world.wait(3 * HOUR, LONGEST)
        for _ in range(2):
            self.program("gc", self.collect)
            while self.world.running():
                self.world.step(self.world.running()[0], "right")
        self.look()
        folders = {name.rsplit("/", 2)[0] for name in self.world.rows if name.startswith("objects/")}
        assert len({name.split("/")[2] for name in folders}) == len(KEYS)
        newest: dict[tuple[str, str], int] = {}
        for name in self.world.rows:
            if name.startswith("checkpoints/") and (epoch := epoch_of(name.split("/")[3])):
                _, key, step = name.split("/")[:3]
                newest[key, step] = max(newest.get((key, step), 0), epoch)
        for (key, step), epoch in newest.items():  # but for those that an interrupted forced run can go on from
            assert epoch > self.manifests[key][-1][0], f"checkpoints/{key}/{step} is left"


TestProtocol = Protocol.TestCase
TestProtocol.settings = hypothesis.settings(
    max_examples=int(os.environ.get("MOXIN_FAULT_TRIALS", "30")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    report_multiple_bugs=False,
)


def slept(world: World) -> tuple[Actor, Any]:
    """An attempt whose machine slept for a day between its last upload and its publishing."""
    model = Protocol()
    model.begin(dated=True, late_lists=world.late_lists)
    model.stack.close()
    model.world, world.watch = world, model.watch
    actor = model.program("run", lambda me: model.attempt(me, KEYS[0], 0, False))
    while not (actor.waits_for.startswith("PUT objects") and actor.waits_for.endswith("/1")):
        world.step(actor, "right")
    world.step(actor, "right")
    world.wait(90_000.0, LONGEST)
    return actor, model


@pytest.mark.parametrize("late_lists", [0.0, 60.0])
def test_whoever_publishes_after_a_long_sleep_is_fenced_or_left_alone(late_lists: float) -> None:
    """Garbage collection is interrupted after each of its requests, for each number of requests of the attempt."""
    ends = set[str]()
    for after in range(7, 40):
        for requests in range(1, 5):
            world = World(late_lists=late_lists)
            with world.entered():
                actor, model = slept(world)
                collector = model.program("gc", model.collect)
                for _ in range(after):
                    world.step(collector, "right")
                if collector.greenlet.dead:
                    break
                for _ in range(requests):
                    world.step(actor, "right")
                for one in (collector, actor):
                    while not one.greenlet.dead:
                        world.step(one, "right")
                model.look()
            ends.add("published" if f"manifests/{KEYS[0]}.json" in world.rows else "fenced")
    assert ends == {"published", "fenced"}
