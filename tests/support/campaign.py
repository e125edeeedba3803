"""One seeded trial of a campaign: a run of the small pipeline in processes of its own, something of it killed or
stopped at a random point, a second run, and all that must hold afterwards.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from flows import garbage_collection
from flows.local_services import lifecycle, object_store, processes, state_file
from flows.settings import BUCKET, Settings
from stages.core.ledger import Ledger
from stages.core.messages import StoreAddress
from stages.core.store import Store
from tests.support import probe_pipeline
from tests.support.limits import HANG
from tests.support.paths import PROBES, ROOT

OVERRIDES = ("train_1.steps=12", "train_1.save_every=3", "train_1.step_seconds=0.02", "train_2.steps=6")
PROGRAM = f"""
import json, os, sys
from pathlib import Path
import stages
stages.__path__.append({str(PROBES)!r})
from flows import garbage_collection
from flows.launch.process import ProcessLauncher
from flows.settings import Settings
from stages.core.ledger import Ledger
from stages.core.messages import StoreAddress
from stages.core.store import Store
from tests.support import probe_pipeline
home, run_id, store, overrides = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:]
keys = {{name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}}
settings = Settings(home=home, store=StoreAddress(**store), prefect_api_url="http://127.0.0.1:9/api",
    external_store=True, external_prefect=False, credentials=keys, prefect_auth="moxin:not-for-stages")
sys.executable = probe_pipeline.python_with_probes(home)
ledger, launcher = Ledger(Store(settings.store)), ProcessLauncher(settings)
pipeline = probe_pipeline.small_pipeline()
launcher.reap()
lines = list(garbage_collection.collect(home, ledger))
profile = probe_pipeline.profile_of(pipeline, home, *overrides)
run = probe_pipeline.execution(pipeline, profile, ledger, home, launcher, run_id=run_id)
results = probe_pipeline.run_nodes(run, pipeline)
digests = lambda result: [manifest.digest for manifest in result.outputs.values()]
print(json.dumps({{name: [result.key, digests(result)] for name, result in results.items()}}))
"""
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGSTOP": signal.SIGSTOP}
TARGETS = ("flow", "stage", "store")


class OwnStore:
    """A store that may be killed: it is started again at the same ports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, dict[str, Any]()
        first = 30_000 + 100 * (os.getpid() % 200)
        self.state |= {f"{name}_port": first + 41 * i for i, name in enumerate(("s3", "master", "volume", "filer"))}
        self.keys = state_file.credentials(folder)
        self.start()

    def start(self) -> None:
        launch = object_store.command(self.folder, self.state, self.keys)
        lifecycle.start(self.folder, self.state, "store", launch, lambda line: None)
        self.settings = Settings(
            home=self.folder,
            store=StoreAddress(bucket=BUCKET, endpoint=f"http://127.0.0.1:{self.state['s3_port']}"),
            prefect_api_url="http://127.0.0.1:9/api",
            external_store=True,
            external_prefect=False,
            credentials={
                "AWS_ACCESS_KEY_ID": self.keys["s3_access_key"],
                "AWS_SECRET_ACCESS_KEY": self.keys["s3_secret_key"],
            },
        )
        lifecycle.wait(self.folder, self.state, "store", lambda: object_store.ready(self.settings))

    @property
    def pid(self) -> int:
        return int(str(self.state["store"]).partition(":")[0])

    def revive(self) -> None:
        """As `moxin up` does it at the next command."""
        if not processes.alive(self.state, "store"):
            self.start()


@contextmanager
def own_store(folder: Path) -> Iterator[OwnStore]:
    environment = dict(os.environ)
    store = OwnStore(folder)
    try:
        yield store
    finally:
        processes.stop(store.state, "store", 0.0)
        os.environ.clear()
        os.environ.update(environment)


@dataclass
class Trial:
    """What was done in one trial, and what came of it."""

    seed: int
    hits: list[str] = field(default_factory=list[str])
    runs: int = 0
    resumed: int = 0


class Campaign:
    """Trials over one store."""

    def __init__(self, store: OwnStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        home = self.home("undisturbed")
        self.expected = self.ended(self.begin(home, "run-0"), home)
        self.usual = self.measured()

    def measured(self) -> float:
        """Processor seconds of a run that finds the data and trains."""
        home, seconds = self.prepared("measured"), 0.0
        process = self.begin(home, "run-0")
        while process.poll() is None:
            seconds = max(seconds, used(process.pid))
            time.sleep(0.1)
        assert self.ended(process, home) == self.expected
        return seconds

    def prepared(self, name: str) -> Path:
        """A home whose store has what was made undisturbed, but for the two trainings."""
        home, source = self.home(name), self.ledger(self.folder / "undisturbed").store
        trained = ("train_1", "train_2", self.expected["train_1"][0], self.expected["train_2"][0])
        client, bucket, before = source._client, source.address.bucket, source.address.prefix
        for row in source.list(""):
            if not any(word in row.key for word in trained):
                origin = {"Bucket": bucket, "Key": before + row.key}
                client.copy_object(Bucket=bucket, Key=f"{name}/{row.key}", CopySource=origin)
        return home

    def home(self, name: str) -> Path:
        home = self.folder / name
        for part in ("", "scratch", "logs"):
            (home / part).mkdir(parents=True, exist_ok=True)
        return home

    def ledger(self, home: Path) -> Ledger:
        address = self.store.settings.store.model_copy(update={"prefix": f"{home.name}/"})
        return Ledger(Store(address))

    def begin(self, home: Path, run_id: str) -> subprocess.Popen[str]:
        store = {**self.store.settings.store.model_dump(exclude_defaults=True), "prefix": f"{home.name}/"}
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "AWS_", "MOXIN_"))}
        environment = clean | self.store.settings.store_environment() | {
            "MOXIN_HOME": str(home), "MOXIN_SCRATCH": str(home / "scratch"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        with open(home / f"{run_id}.err", "w") as errors:
            return subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(home), run_id, json.dumps(store), *OVERRIDES],
                cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            )  # fmt: skip

    def ended(self, process: subprocess.Popen[str], home: Path) -> dict[str, Any]:
        out, _ = process.communicate(timeout=HANG)
        errors = "\n".join(path.read_text()[-3000:] for path in home.glob("*.err"))
        assert process.returncode == 0, f"{home}: {process.returncode}\n{errors}"
        return json.loads(out)

    def trial(self, seed: int) -> Trial:
        """Break something once or twice, run again, and look."""
        chance, trial = random.Random(seed), Trial(seed)
        home = self.prepared(f"trial-{seed}")
        process = self.begin(home, "run-1")
        moments = sorted(chance.uniform(0.1, 1.0) * self.usual for _ in range(chance.choice((1, 1, 2))))
        for moment in moments:
            while process.poll() is None and used(process.pid) < moment:
                time.sleep(0.05)
            if process.poll() is None:
                trial.hits += self.hit(chance, process, home)
        out, _ = process.communicate(timeout=HANG)
        before = {row.key: row.etag for row in self.ledger(home).store.list("manifests/")}
        trial.runs = 1
        if process.returncode:
            trial.runs = 2
            process = self.begin(home, "run-2")
            results = self.ended(process, home)
        else:
            results = json.loads(out)
        self.hold(home, results, before, trial)
        return trial

    def hit(self, chance: random.Random, process: subprocess.Popen[str], home: Path) -> list[str]:
        """Send one signal to one process; what is stopped goes on a moment later, a store that is dead is started."""
        target, name = chance.choice(TARGETS), chance.choice(tuple(SIGNALS))
        stages = of_scratch(home)
        pid = {"flow": process.pid, "stage": chance.choice(stages) if stages else 0, "store": self.store.pid}[target]
        if not pid:
            return []
        with suppress(ProcessLookupError):
            os.kill(pid, SIGNALS[name])
        if name == "SIGSTOP":
            time.sleep(chance.uniform(0.1, 1.5))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        elif target == "store":
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                psutil.Process(pid).wait(10)
            self.store.revive()
        return [f"{name} {target}"]

    def hold(self, home: Path, results: dict[str, Any], before: dict[str, str], trial: Trial) -> None:
        """What must hold after every trial."""
        about, ledger = f"trial {trial.seed}: {trial.hits}", self.ledger(home)
        assert results == self.expected, f"{about}: other keys or digests than an undisturbed run's"
        list(garbage_collection.collect(home, ledger))  # as the next run does when it starts
        now = {row.key: row.etag for row in ledger.store.list("manifests/")}
        assert before.items() <= now.items(), f"{about}: a key was published twice"
        for name, (key, _) in results.items():
            stored = ledger.manifest(key)
            assert stored is not None, about
            assert ledger.missing_objects(stored[0]) == [], f"{about}: {name} is visible, and not whole"
            trial.resumed += stored[0].attempt.resumed_from is not None
            if name == "train_1":
                rows = ledger.store.get(str(stored[0].metrics_object))
                assert rows is not None
                steps = [json.loads(row)["step"] for row in rows[0].splitlines()]
                assert steps == list(range(1, 13)), f"{about}: the curve has {steps}"
            held = ledger.lease(key)
            assert held is None or not held[0].live, f"{about}: {name} is still leased"
            open_ones = [record.epoch for record in ledger.attempts(key) if not record.ended_at]
            assert open_ones == [], f"{about}: attempts {open_ones} of {name} have no end"
            left = ledger.checkpoint_steps(key)
            assert left == [], f"{about}: checkpoints {left} of {name} are left, {trial.runs} runs"
        probe_pipeline.wait_for(lambda: not of_scratch(home), f"{about}: the end of all stages")
        list(garbage_collection.collect(home, ledger))
        assert [p.name for p in (home / "scratch").glob("stage-*")] == [], about


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


def of_scratch(home: Path) -> list[int]:
    """Stages of a folder, and what they started, that live."""
    pids = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            runs = one.status() != psutil.STATUS_ZOMBIE and "stages.core.runtime" in " ".join(one.cmdline())
            if runs and one.environ().get("MOXIN_SCRATCH") == str(home / "scratch"):
                pids.append(one.pid)
    return sorted(pids)
