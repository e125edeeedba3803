"""Seeded trials of a campaign: a run of the small pipeline in processes of its own, something of it killed, stopped or
asked to stop at a random point, once or twice, a second run, and all that must hold afterwards.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from flows import garbage_collection
from flows.launch.slurm_controller import queued_jobs, run
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.store import Store
from stages.core.task_objects import work_prefix
from stages.core.workspace import UNCLAIMED
from tests.support import probe_pipeline, s3_proxy
from tests.support.campaign_prefect import MARK, FlowRun, OwnPrefect
from tests.support.campaign_results import Hit, Trial
from tests.support.campaign_run import IMAGE, launcher_of
from tests.support.campaign_store import OwnStore
from tests.support.limits import HANG
from tests.support.paths import ROOT

STEPS, STEP_SECONDS = {"train_1": 12, "train_2": 6}, 0.02
OVERRIDES = (
    *(f"{node}.steps={steps}" for node, steps in STEPS.items()),
    "train_1.save_every=3", f"train_1.step_seconds={STEP_SECONDS}",
)  # fmt: skip
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGSTOP": signal.SIGSTOP}
POWER = "the power goes"
WORKER, BAD_STORE, POOL = "worker", "bad store", "pool"
WAYS = ("process", "ranks", POWER, WORKER, BAD_STORE, POOL)
"""How the trials differ, in turn: what runs, and what becomes of it. "worker": as a run of a deployment, by Prefect's
worker. "bad store": nothing is hit, but requests go wrong, each in a way of its own. "pool": the shards are packed in
tasks by a pool of processes, and something is hit before they are there.
"""
CONTAINER, ARRAY = "container", "array"
"""Two more, where there is an engine, or a cluster: tests/launch/test_campaign_containers.py and _arrays.py. The shards
of the second are packed by an array of jobs.
"""
POOLED, TASKS = "shards", 16
"""The node that has the pool, and its tasks: one for each token of a window."""
POOL_WORKER, ELEMENT = "worker of a pool", "array element"
POOLS = (POOL, ARRAY)
POOL_OVERRIDES = {
    POOL: (f"{POOLED}.workers=2", f"{POOLED}.task_seconds=0.1"),
    ARRAY: (f"{POOLED}.workers=slurm", f"{POOLED}.task_seconds=0.1", f"launchers.{POOLED}=slurm"),
}
WRONG = 0.05
"""Share of the requests to a bad store that go wrong."""
SERVICES = ("store", "Prefect server", "worker")
"""Targets that are started again at once, as `moxin up` does it."""
AGAIN = "repeat it: MOXIN_FAULT_SEED={seed} {trials}=1 .venv/bin/pytest -s tests/{file}.py"
FILES = {
    CONTAINER: ("MOXIN_FAULT_CONTAINERS", "launch/test_campaign_containers"),
    ARRAY: ("MOXIN_FAULT_ARRAYS", "launch/test_campaign_arrays"),
}
SPAWNED, OF_ARRAY = "multiprocessing.spawn", "stages.lib.data.job_array"
"""In the command of a pool's worker, and of an array's element."""
Process = subprocess.Popen[str] | FlowRun


class BrokenPromise(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, detail: object = "") -> None:
        super().__init__(f"{invariant}: not so" + (f"\n{detail}" if detail else ""))


class Campaign:
    """Trials over one store."""

    def __init__(
        self, store: OwnStore, folder: Path, services: Callable[[], OwnPrefect], docker: Any = None, image: str = ""
    ) -> None:
        """services: gives the Prefect server and worker, when the first run needs them. docker: the client of an
        engine, and the image of the probe stages there, for the way "container".
        """
        self.store, self.folder, self._docker, self._image = store, folder, docker, image
        self._services, self._usual, self._packing = functools.cache(services), dict[str, float](), dict[str, float]()
        home = self.home("undisturbed")
        if not self.ended_well(self.begin(home, "run-0", "process")):
            raise AssertionError(self.said(home))
        self.expected = self.results(home)
        self.rows = self.curve(home)

    def usual(self, way: str) -> float:
        """Processor seconds of a flow, and of what it has started, that finds the data and trains; by a pool: until the
        shards are there. Of jobs, which are not its processes: seconds by the clock.
        """
        if way in (POWER, BAD_STORE):
            return self.usual("process")
        if way not in self._usual:
            home, seconds = self.prepared(f"usual-{way}", way), 0.0
            process, began = self.begin(home, "run-0", way), time.monotonic()
            while process.poll() is None:
                if way not in POOLS or POOLED in self.unpublished(home, way):
                    seconds = max(seconds, spent(way, process, began))
                time.sleep(0.05)
            assert self.ended_well(process), self.said(home)
            assert self.results(home) == self.expected
            if way in POOLS and (stored := self.ledger(home).manifest(self.expected[POOLED][0])):
                self._packing[way] = stored[0].attempt.wall_seconds
            shutil.rmtree(home)
            self._usual[way] = seconds
        return self._usual[way]

    def home(self, name: str) -> Path:
        home = self.folder / name
        for part in ("", "scratch", "logs"):
            (home / part).mkdir(parents=True, exist_ok=True)
        return home

    def prepared(self, name: str, way: str) -> Path:
        """A home whose store has what was made undisturbed, but for the nodes that are to be broken."""
        home, source = self.home(name), self.ledger(self.folder / "undisturbed").store
        missing = [word for node in nodes_of(way) for word in (f"/{node}.json", self.expected[node][0])]
        client, bucket, before = source._client, source.address.bucket, source.address.prefix
        for row in source.list(""):
            if not any(word in row.key for word in missing):
                origin = {"Bucket": bucket, "Key": before + row.key}
                client.copy_object(Bucket=bucket, Key=f"{name}/{row.key}", CopySource=origin)
        return home

    def ledger(self, home: Path) -> Ledger:
        address = self.store.settings.store.model_copy(update={"prefix": f"{home.name}/"})
        return Ledger(Store(address))

    def curve(self, home: Path) -> dict[str, list[bytes]]:
        """The rows of each training, as they were published."""
        ledger, rows = self.ledger(home), dict[str, list[bytes]]()
        for node in STEPS:
            result = ledger.manifest(self.expected[node][0])
            stored = ledger.store.get(str(result[0].metrics_object)) if result else None
            rows[node] = stored[0].splitlines() if stored else []
        return rows

    # --- a run ------------------------------------------------------------------------------------------------

    def begin(self, home: Path, run_id: str, way: str, endpoint: str = "") -> Process:
        """endpoint: of the store, where it is not asked at its own."""
        store = self.store.settings.store.model_copy(update={"prefix": f"{home.name}/"})
        store = store.model_copy(update={"endpoint": endpoint}) if endpoint else store
        if way == WORKER:
            return self._services().begin(home, store, self.store.settings.store_environment(), [*OVERRIDES])
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "AWS_", "MOXIN_"))}
        environment = clean | self.store.settings.store_environment() | {
            "MOXIN_HOME": str(home), "MOXIN_SCRATCH": str(home / "scratch"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        environment |= {IMAGE: self._image} if way == CONTAINER else {}
        overrides = [*OVERRIDES, *POOL_OVERRIDES.get(way, ())]
        arguments = [str(home), run_id, store.model_dump_json(exclude_defaults=True), way, *overrides]
        with open(home / f"{run_id}.err", "w") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.support.campaign_run", *arguments],
                cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            )  # fmt: skip

    def ended_well(self, process: Process) -> bool:
        """Wait for a run's end."""
        if isinstance(process, FlowRun):
            return process.wait() == 0
        process.communicate(timeout=HANG)
        return process.returncode == 0

    def results(self, home: Path) -> dict[str, Any]:
        """Key and digests of each node's result."""
        ledger = self.ledger(home)
        stored = {name: ledger.manifest(record.key) for name, record in ledger.nodes("test").items()}
        return {
            name: [one[0].key, [manifest.digest for manifest in one[0].outputs.values()]]
            for name, one in stored.items()
            if one
        }

    # --- a trial ----------------------------------------------------------------------------------------------

    def trial(self, seed: int, way: str = "") -> Trial:
        """Break something once or twice, run again, and look; what does not hold is the trial's problem."""
        trial, began = Trial(seed, way or WAYS[seed % len(WAYS)]), time.monotonic()
        home = self.prepared(f"trial-{seed}", trial.way)
        try:
            self.break_and_look(trial, home)
            shutil.rmtree(home)
        except Exception as error:  # the trials after it are made all the same
            told = str(error) if isinstance(error, BrokenPromise) else traceback.format_exc()
            trials, file = FILES.get(trial.way, ("MOXIN_FAULT_TRIALS", "fault/test_campaign"))
            trial.problem = f"{told}\n{AGAIN.format(seed=seed, trials=trials, file=file)}"
            self.end_all(trial, home)
        trial.seconds = time.monotonic() - began
        return trial

    def end_all(self, trial: Trial, home: Path) -> None:
        """End what a trial that failed has left."""
        self.store.revive()
        if trial.way == WORKER:
            self._services().revive()
        for pid in (*of_home(home), *of_scratch(home)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if trial.way == ARRAY and (numbers := jobs(home)):
            run("scancel", *numbers)

    def break_and_look(self, trial: Trial, home: Path) -> None:
        """One trial. Raises BrokenPromise."""
        chance, usual = random.Random(trial.seed), self.usual(trial.way)
        if trial.way == BAD_STORE:
            self.go_wrong(chance, trial, home)
            return
        process, began = self.begin(home, "run-1", trial.way), time.monotonic()
        power, since, open_nodes, left = trial.way == POWER, 0.0, list[str](), 0.0
        moments = sorted(chance.uniform(0.05, 0.9) * usual for _ in range(1 if power else chance.choice((1, 1, 2))))
        for moment in moments:
            while process.poll() is None and spent(trial.way, process, began) < moment:
                if time.monotonic() - began > HANG:
                    raise BrokenPromise("a run begins, or ends", self.said(home))
                time.sleep(0.05)
            if process.poll() is None:
                open_nodes = self.unpublished(home, trial.way)
                what = self.power_off(chance, process, home) if power else self.hit(chance, process, home)
                trial.hits.append(Hit(*what, moment / usual, open_nodes[0] if open_nodes else ""))
                since, left = time.time(), self.packing_left(home, trial.way)
                self.whole(home)
        well = self.ended_well(process) and not (power and trial.hits)  # what ended well meanwhile is gone, too
        before = {row.key: row.etag for row in self.ledger(home).store.list("manifests/")}
        if not well:
            trial.runs, since, open_nodes = 2, time.time(), self.unpublished(home, trial.way)
            left = self.packing_left(home, trial.way)
            process = self.begin(home, "run-2", trial.way)
            if not self.ended_well(process):
                raise BrokenPromise("the next run ends well, and nothing has to be done by hand", self.said(home))
        self.hold(home, before, trial)
        self.measure(home, trial, since, open_nodes, left)

    def go_wrong(self, chance: random.Random, trial: Trial, home: Path) -> None:
        """A run whose requests go wrong now and then; where it ends for it, another one with a store that is well."""
        lock, ways = threading.Lock(), [way for way in s3_proxy.WAYS if way != "hang"]

        def rule(method: str, path: str) -> str | None:
            with lock:
                return chance.choice(ways) if chance.random() < WRONG else None

        with s3_proxy.proxied(str(self.store.settings.store.endpoint)) as proxy:
            proxy.rule = rule
            well = self.ended_well(self.begin(home, "run-1", "process", proxy.url))
            wrong = Counter(what for _, _, what in proxy.log if what != "pass")
            trial.hits = [Hit(f"{count} x {what}", "requests", 0.0, "") for what, count in sorted(wrong.items())]
            self.whole(home)
            before = {row.key: row.etag for row in self.ledger(home).store.list("manifests/")}
            proxy.rule = lambda method, path: None
            if not well:
                trial.runs = 2
                if not self.ended_well(self.begin(home, "run-2", "process", proxy.url)):
                    raise BrokenPromise("the next run ends well, and nothing has to be done by hand", self.said(home))
        self.hold(home, before, trial)

    def said(self, home: Path) -> str:
        return "\n".join(path.read_text()[-3000:] for path in home.glob("*.err"))

    def packing_left(self, home: Path, way: str) -> float:
        """Seconds that an undisturbed run takes for the tasks of a pool that are not done yet."""
        prefix = work_prefix("probe_shards", self.expected[POOLED][0])
        done = sum(row.key.endswith(".json") for row in self.ledger(home).store.list(f"{prefix}repeat/"))
        return self._packing.get(way, 0.0) * (1 - done / TASKS)

    def unpublished(self, home: Path, way: str) -> list[str]:
        ledger = self.ledger(home)
        return [node for node in nodes_of(way) if ledger.manifest(self.expected[node][0]) is None]

    def targets(self, process: Process, home: Path) -> dict[str, list[int]]:
        """What there is to hit: process numbers by kind."""
        kinds: dict[str, list[int]] = {"store": [self.store.pid]} | ({"flow": [process.pid]} if process.pid else {})
        if isinstance(process, FlowRun):
            services = self._services()
            kinds |= {"worker": [services.pid("worker")], "Prefect server": [services.pid("prefect")]}
        if pids := [pid for one in self.containers(home) if (pid := one.attrs["State"]["Pid"])]:
            kinds["container"] = pids
        for pid in of_scratch(home):
            with suppress(psutil.Error):
                one = psutil.Process(pid)
                kinds.setdefault(kind_of(one), []).append(pid)
        return kinds

    def containers(self, home: Path) -> list[Any]:
        """Those of a home's stages, that run or ended."""
        if self._docker is None:
            return []
        label = f"moxin.home={sha256(str(home).encode())[:16]}"  # as flows/launch/docker.py names it
        return self._docker.containers.list(all=True, filters={"label": label}, ignore_removed=True)

    def hit(self, chance: random.Random, process: Process, home: Path) -> tuple[str, str]:
        """Send one signal to one process; what is stopped goes on a moment later, a store that is dead is started."""
        kinds = self.targets(process, home)
        # every other hit, while there are some
        targets = sorted(kinds) + [one for one in (POOL_WORKER, ELEMENT) if one in kinds for _ in range(3)]
        target, name = chance.choice(targets), chance.choice(tuple(SIGNALS))
        pid = chance.choice(kinds[target])
        with suppress(ProcessLookupError):
            os.kill(pid, SIGNALS[name])
        if name == "SIGSTOP":
            time.sleep(chance.uniform(0.1, 1.5))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        elif target in SERVICES:
            _gone(pid)
            (self.store if target == "store" else self._services()).revive()
        return name, target

    def power_off(self, chance: random.Random, process: Process, home: Path) -> tuple[str, str]:
        """All that was written after some moment is gone: the store's disk and the state folder are as they were."""
        store, folder = self.store.snapshot(), home.with_name(f"{home.name}-before")
        with suppress(shutil.Error):  # files come and go while they are copied
            shutil.copytree(home, folder, symlinks=True)
        time.sleep(chance.uniform(0.0, 1.0))
        for pid in (process.pid, *of_scratch(home)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.store.set_back(store)
        errors = {path.name: path.read_text() for path in home.glob("*.err")}
        shutil.rmtree(home)
        folder.rename(home)
        for name, text in errors.items():
            (home / name).write_text(text)
        return POWER, "store and flow"

    def whole(self, home: Path) -> None:
        """What can be seen is whole, at any time."""
        ledger = self.ledger(home)
        for row in ledger.store.list("manifests/"):
            result = ledger.manifest(row.key.removeprefix("manifests/").removesuffix(".json"))
            if result and (gone := ledger.missing_objects(result[0])):
                raise BrokenPromise("nothing torn is ever visible", f"{row.key}: {gone}")

    def hold(self, home: Path, before: dict[str, str], trial: Trial) -> None:
        """What must hold after every trial."""
        ledger, results = self.ledger(home), self.results(home)
        if results != self.expected:
            raise BrokenPromise("keys and digests are an undisturbed run's", f"{results}\n{self.expected}")
        list(garbage_collection.collect(home, ledger))  # as the next run does when it starts
        now = {row.key: row.etag for row in ledger.store.list("manifests/")}
        if not before.items() <= now.items():
            raise BrokenPromise("no key is published twice with different bytes", f"{before}\n{now}")
        self.whole(home)
        if self.curve(home) != self.rows:
            raise BrokenPromise("curves are an undisturbed run's", self.curve(home))
        for name, (key, _) in results.items():
            stored, held = ledger.manifest(key), ledger.lease(key)
            trial.resumed += bool(stored and stored[0].attempt.resumed_from is not None)
            if held is not None and held[0].live:
                raise BrokenPromise("no lease outlives its holder", f"{name}: {held[0]}")
            if open_ones := [record.epoch for record in ledger.attempts(key) if not record.ended_at]:
                raise BrokenPromise("every attempt's record is closed by the next run", f"{open_ones} of {name}")
            if left := ledger.checkpoint_steps(key):
                raise BrokenPromise("no checkpoint of a result is left", f"{left} of {name}")
        if trial.way == WORKER:
            self._services().revive()
            if open_runs := self._services().open_runs():
                raise BrokenPromise("no run of Prefect's stays as if somebody worked on it", open_runs)
        probe_pipeline.wait_for(lambda: not of_scratch(home), f"{trial}: the end of all processes")
        probe_pipeline.wait_for(lambda: not self.containers(home), f"{trial}: the end of all containers")
        if trial.way == ARRAY:
            probe_pipeline.wait_for(lambda: not jobs(home), f"{trial}: an empty queue")
        self.swept(home, ledger, trial.way)

    def swept(self, home: Path, ledger: Ledger, way: str) -> None:
        """A folder that was being made or removed, and has no owner's mark, goes a minute later. Those of
        Slurm's jobs are swept while no installation has a job.
        """
        launcher = launcher_of(way, dataclasses.replace(self.store.settings, home=home)) if way == ARRAY else None

        def left() -> list[str]:
            list(garbage_collection.collect(home, ledger))
            if launcher:
                launcher.reap()
            return [path.name for scratch in scratches(home) for path in Path(scratch).glob("stage-*")]

        deadline = time.monotonic() + (HANG if launcher else 2 * UNCLAIMED)
        while names := left():
            if time.monotonic() > deadline:
                raise BrokenPromise("no scratch folder is left", names)
            time.sleep(1.0)

    def measure(self, home: Path, trial: Trial, since: float, open_nodes: list[str], packing: float) -> None:
        """How long the stage that was interrupted took to end, beyond the work that was left to it. packing: seconds of
        that, where it packs.
        """
        if not trial.hits or not open_nodes:
            return
        node, ledger = open_nodes[0], self.ledger(home)
        stored = ledger.manifest(self.expected[node][0])
        assert stored
        attempt = stored[0].attempt
        record = ledger.attempt(stored[0].key, attempt.epoch)
        assert record
        left = (STEPS.get(node, 0) - (attempt.resumed_from or 0)) * (STEP_SECONDS if node == "train_1" else 0.0)
        left = packing if node == POOLED else left
        leased, begun, ended = map(seconds_of, (record.started_at, attempt.started_at, attempt.ended_at))
        trial.recovery = max(0.0, ended - since - left)
        trial.parts = {"to its lease": leased - since, "to its start": begun - leased, "itself": ended - begun - left}


def nodes_of(way: str) -> tuple[str, ...]:
    """What is not there when a trial begins."""
    return (POOLED, *STEPS) if way in POOLS else (*STEPS,)


def seconds_of(text: str) -> float:
    """A time of a record, in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def spent(way: str, process: Process, began: float) -> float:
    """Seconds by which the moments of a way are chosen: see `Campaign.usual`. began: by the monotonic clock."""
    return time.monotonic() - began if way == ARRAY else used(process.pid)


def used(pid: int) -> float:
    """Processor seconds of a process with all that it started."""
    total = 0.0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for one in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                times = one.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def of_home(home: Path) -> list[int]:
    """Runs of a folder that live."""
    pids = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            command, whose = one.cmdline(), one.environ().get(MARK)
            if ("tests.support.campaign_run" in command and str(home) in command) or whose == str(home):
                pids.append(one.pid)
    return pids


def jobs(home: Path) -> list[str]:
    """Slurm's jobs of a folder that are not over."""
    return [*queued_jobs(f"moxin:{sha256(str(home).encode())[:12]}:")]  # as flows/launch/slurm.py names it


def scratches(home: Path) -> tuple[str, str]:
    """Where stages of a folder work: started here, and by Slurm."""
    return str(home / "scratch"), str(home / "slurm" / "scratch")


def kind_of(process: psutil.Process) -> str:
    """What a process of a stage is."""
    words, rank = process.cmdline(), process.environ().get("RANK")
    if Path(words[0]).name == "srun":
        return "srun"
    if "torch.distributed.run" in words:
        return "torchrun"
    if rank:
        return f"rank {rank}"
    return ELEMENT if OF_ARRAY in words else POOL_WORKER if SPAWNED in " ".join(words) else "stage"


def of_scratch(home: Path) -> list[int]:
    """Stages of a folder, and what they started, that live."""
    pids = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            words = " ".join(one.cmdline())
            ours = any(word in words for word in ("stages.core.runtime", SPAWNED, OF_ARRAY))
            if ours and one.status() != psutil.STATUS_ZOMBIE and one.environ().get("MOXIN_SCRATCH") in scratches(home):
                pids.append(one.pid)
    return sorted(pids)


def _gone(pid: int) -> None:
    """Wait until a service has ended that was told to; one that takes long, as `moxin down` ends it: a store that still
    lived, and answered nobody, was not started again.
    """
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        with suppress(psutil.TimeoutExpired):
            process.wait(20)
        with suppress(psutil.TimeoutExpired):
            process.kill()
            process.wait(HANG)
