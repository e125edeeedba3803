"""Seeded trials of a campaign: a run of the small pipeline in processes of its own, something of it killed, stopped or
asked to stop at a random point, once or twice, a second run, and all that must hold afterwards.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import psutil

from flows import garbage_collection
from stages.core.ledger import Ledger
from stages.core.store import Store
from tests.support import probe_pipeline
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
WAYS = ("process", "ranks", POWER)
"""How the trials differ, in turn: what runs, and what becomes of it."""
AGAIN = "repeat it: MOXIN_FAULT_SEED={seed} MOXIN_FAULT_TRIALS=1 .venv/bin/pytest -s tests/fault/test_campaign.py"


@dataclass
class Trial:
    """What was done in one trial, and what came of it."""

    seed: int
    way: str
    hits: list[str] = field(default_factory=list[str])
    runs: int = 1
    resumed: int = 0
    recovery: float | None = None
    """Seconds from the start of the rerun (where none was needed: from the last hit) to the end of the stage that was
    interrupted, without the steps that it still had to do. None: nothing was interrupted.
    """

    def __str__(self) -> str:
        took = "" if self.recovery is None else f", recovered in {self.recovery:.1f} s"
        hits = ", ".join(self.hits) or "it was over before"
        return f"trial {self.seed} ({self.way}): {hits}; {self.runs} runs, {self.resumed} resumed{took}"

    def fail(self, invariant: str, detail: object = "") -> NoReturn:
        """An invariant does not hold."""
        told = f"\n{detail}" if detail else ""
        raise AssertionError(f"{invariant}: not so\n{self}{told}\n{AGAIN.format(seed=self.seed)}")


class Campaign:
    """Trials over one store."""

    def __init__(self, store: OwnStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        home = self.home("undisturbed")
        process, seconds, at = self.begin(home, "run-0", "process"), 0.0, dict[int, float]()
        while process.poll() is None:
            seconds = max(seconds, used(process.pid))
            at.setdefault(len(list((home / "logs" / "stages").glob("*"))), seconds)
            time.sleep(0.1)
        self.expected = self.ended(process, home)
        self.rows = self.curve(home)
        data = min(since for begun, since in at.items() if begun > len(self.expected) - len(STEPS))
        self.usual = seconds - data + min(since for begun, since in at.items() if begun)
        """Processor seconds of a run that finds the data and trains."""

    def home(self, name: str) -> Path:
        home = self.folder / name
        for part in ("", "scratch", "logs"):
            (home / part).mkdir(parents=True, exist_ok=True)
        return home

    def prepared(self, name: str) -> Path:
        """A home whose store has what was made undisturbed, but for the two trainings."""
        home, source = self.home(name), self.ledger(self.folder / "undisturbed").store
        trained = [*STEPS, *(self.expected[node][0] for node in STEPS)]
        client, bucket, before = source._client, source.address.bucket, source.address.prefix
        for row in source.list(""):
            if not any(word in row.key for word in trained):
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

    def begin(self, home: Path, run_id: str, way: str) -> subprocess.Popen[str]:
        store = self.store.settings.store.model_copy(update={"prefix": f"{home.name}/"})
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "AWS_", "MOXIN_"))}
        environment = clean | self.store.settings.store_environment() | {
            "MOXIN_HOME": str(home), "MOXIN_SCRATCH": str(home / "scratch"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        arguments = [str(home), run_id, store.model_dump_json(exclude_defaults=True), way, *OVERRIDES]
        with open(home / f"{run_id}.err", "w") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.support.campaign_run", *arguments],
                cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            )  # fmt: skip

    def ended(self, process: subprocess.Popen[str], home: Path) -> dict[str, Any]:
        out, _ = process.communicate(timeout=HANG)
        errors = "\n".join(path.read_text()[-3000:] for path in home.glob("*.err"))
        assert process.returncode == 0, f"{home}: {process.returncode}\n{errors}"
        return json.loads(out)

    # --- a trial ----------------------------------------------------------------------------------------------

    def trial(self, seed: int) -> Trial:
        """Break something once or twice, run again, and look."""
        chance, trial = random.Random(seed), Trial(seed, WAYS[seed % len(WAYS)])
        home = self.prepared(f"trial-{seed}")
        process = self.begin(home, "run-1", trial.way)
        power, since, open_nodes = trial.way == POWER, 0.0, list[str]()
        moments = sorted(
            chance.uniform(0.05, 0.9) * self.usual for _ in range(1 if power else chance.choice((1, 1, 2)))
        )
        for moment in moments:
            while process.poll() is None and used(process.pid) < moment:
                time.sleep(0.05)
            if process.poll() is None:
                open_nodes = self.unpublished(home)
                trial.hits += self.power_off(chance, process, home) if power else self.hit(chance, process, home)
                since = time.time()
                self.whole(home, trial)
        out, _ = process.communicate(timeout=HANG)
        before = {row.key: row.etag for row in self.ledger(home).store.list("manifests/")}
        if process.returncode:
            trial.runs, since, open_nodes = 2, time.time(), self.unpublished(home)
            process = self.begin(home, "run-2", trial.way)
            out, _ = process.communicate(timeout=HANG)
            if process.returncode:
                trial.fail("the next run ends well, and nothing has to be done by hand", self.said(home))
        self.hold(home, json.loads(out), before, trial)
        self.measure(home, trial, since, open_nodes)
        shutil.rmtree(home)
        return trial

    def said(self, home: Path) -> str:
        return "\n".join(path.read_text()[-3000:] for path in home.glob("*.err"))

    def unpublished(self, home: Path) -> list[str]:
        ledger = self.ledger(home)
        return [node for node in STEPS if ledger.manifest(self.expected[node][0]) is None]

    def targets(self, process: subprocess.Popen[str], home: Path) -> dict[str, list[int]]:
        """What there is to hit: process numbers by kind."""
        kinds: dict[str, list[int]] = {"flow": [process.pid], "store": [self.store.pid]}
        for pid in of_scratch(home):
            with suppress(psutil.Error):
                one = psutil.Process(pid)
                rank = one.environ().get("RANK")
                agent = "torch.distributed.run" in one.cmdline()
                kinds.setdefault("torchrun" if agent else f"rank {rank}" if rank else "stage", []).append(pid)
        return kinds

    def hit(self, chance: random.Random, process: subprocess.Popen[str], home: Path) -> list[str]:
        """Send one signal to one process; what is stopped goes on a moment later, a store that is dead is started."""
        kinds = self.targets(process, home)
        target, name = chance.choice(sorted(kinds)), chance.choice(tuple(SIGNALS))
        pid = chance.choice(kinds[target])
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

    def power_off(self, chance: random.Random, process: subprocess.Popen[str], home: Path) -> list[str]:
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
        return [POWER]

    def whole(self, home: Path, trial: Trial) -> None:
        """What can be seen is whole, at any time."""
        ledger = self.ledger(home)
        for row in ledger.store.list("manifests/"):
            result = ledger.manifest(row.key.removeprefix("manifests/").removesuffix(".json"))
            if result and (gone := ledger.missing_objects(result[0])):
                trial.fail("nothing torn is ever visible", f"{row.key}: {gone}")

    def hold(self, home: Path, results: dict[str, Any], before: dict[str, str], trial: Trial) -> None:
        """What must hold after every trial."""
        ledger = self.ledger(home)
        if results != self.expected:
            trial.fail("keys and digests are an undisturbed run's", f"{results}\n{self.expected}")
        list(garbage_collection.collect(home, ledger))  # as the next run does when it starts
        now = {row.key: row.etag for row in ledger.store.list("manifests/")}
        if not before.items() <= now.items():
            trial.fail("no key is published twice with different bytes", f"{before}\n{now}")
        self.whole(home, trial)
        if self.curve(home) != self.rows:
            trial.fail("curves are an undisturbed run's", self.curve(home))
        for name, (key, _) in results.items():
            stored, held = ledger.manifest(key), ledger.lease(key)
            trial.resumed += bool(stored and stored[0].attempt.resumed_from is not None)
            if held is not None and held[0].live:
                trial.fail("no lease outlives its holder", f"{name}: {held[0]}")
            if open_ones := [record.epoch for record in ledger.attempts(key) if not record.ended_at]:
                trial.fail("every attempt's record is closed by the next run", f"{open_ones} of {name}")
            if left := ledger.checkpoint_steps(key):
                trial.fail("no checkpoint of a result is left", f"{left} of {name}")
        probe_pipeline.wait_for(lambda: not of_scratch(home), f"{trial}: the end of all processes")
        list(garbage_collection.collect(home, ledger))
        if left := [path.name for path in (home / "scratch").glob("stage-*")]:
            trial.fail("no scratch folder is left", left)

    def measure(self, home: Path, trial: Trial, since: float, open_nodes: list[str]) -> None:
        """How long the stage that was interrupted took to end, beyond the work that was left to it."""
        if not trial.hits or not open_nodes:
            return
        node = open_nodes[0]
        stored = self.ledger(home).manifest(self.expected[node][0])
        assert stored
        attempt = stored[0].attempt
        left = (STEPS[node] - (attempt.resumed_from or 0)) * (STEP_SECONDS if node == "train_1" else 0.0)
        trial.recovery = max(0.0, datetime.fromisoformat(attempt.ended_at).timestamp() - since - left)


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
