"""A training of 34 days, played in minutes: what happens to it in that time, and whether it ends as an unbroken one.

    python -m benchmarks.thirty_four_days [--days 34] [--step-seconds 0.5]        (root, and Slurm: infra/dev/slurm.sh)

The training is the probe stage of the tests, whose steps sleep: a day is twenty steps. All else is real: a store, jobs
of a Slurm cluster of two virtual nodes, and control planes that are processes of their own. A time limit is the signal
that Slurm sends before one; a lost node is `kill -9` of the stage; each meets an attempt that has taken steps. A lost
control plane is `kill -9` of its process. What stands in for Prefect's worker and its automation "start runs again that
crashed" sees that, and starts another one, with another run, state folder and host name. The store is away for ten
minutes, and everything that is measured against that (lease, endurance, patience) is shorter by the same factor.
Credentials expire: the store refuses them until whoever hands them out has done so again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import benchmarks.probe_stages  # noqa: F401 - before what needs them
from flows import execute, held_leases, running_stages
from flows.launch.slurm import Site, SlurmLauncher
from flows.launch.slurm_controller import run as slurm
from flows.local_services import lifecycle, object_store, processes, state_file
from flows.log_lines import metric_rows
from flows.lost_runs import RESTARTS
from flows.settings import BUCKET, Settings
from stages.core import leases, records
from stages.core.files import ROOT
from stages.core.ledger import Ledger
from stages.core.messages import StoreAddress
from stages.core.store import Store
from tests.support import probe_pipeline
from tests.support.s3_proxy import Proxy, proxied

FACTOR = 20
"""How much shorter an outage is, and a lease, its endurance, the patience with the store, and with a lost run."""
OUTAGE, STEPS_A_DAY = 600 / FACTOR, 20
CRASH_SEEN = 90 / FACTOR
"""Seconds after which a run without heartbeats counts as crashed."""
STOPS_WITHIN = 3
"""Rows of metrics after an interruption that may still come of the attempt before."""
NODE = "train_1"


@dataclass(frozen=True)
class Trouble:
    """Something that happens to the training when it has come to a step."""

    step: int
    what: str


def troubles(days: int) -> list[Trouble]:
    """A time limit a day, and for 34 days two more, five lost nodes, three outages, two lost control planes, two
    expiries.
    """
    planned = [Trouble(day * STEPS_A_DAY, "time limit") for day in range(1, days)]
    for what, count, shift in (
        ("node lost", 5, 3),
        ("store away", 3, 5),
        ("control plane lost", 2, 7),
        ("credentials expired", 2, 8),
    ):
        number = max(1, round(count * days / 34))
        planned += [
            Trouble(days * STEPS_A_DAY * (i + 1) // (number + 1) // 10 * 10 + shift, what) for i in range(number)
        ]
    planned += [Trouble(days * part // 3 * STEPS_A_DAY + 5, "time limit") for part in (1, 2)]
    return sorted(planned, key=lambda trouble: trouble.step)


def profile(folder: Path, steps: int, step_seconds: float) -> Any:
    values = [f"{NODE}.steps={steps}", f"{NODE}.step_seconds={step_seconds}", f"{NODE}.save_every=2"]
    return probe_pipeline.profile_of(
        probe_pipeline.small_pipeline(), folder, *values, f"patience={900 / FACTOR}", "retries=2"
    )


# --- a control plane --------------------------------------------------------------------------------------------------


class Printer:
    """An observer that hands every event to whoever reads this process's output."""

    def event(self, node: str, event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)


def control(given: dict[str, Any]) -> int:
    """One control plane: it runs the training, or goes on with what another one left."""
    for module in (leases, records):
        module.host_identity = lambda: given["host"]  # type: ignore[attr-defined]
    for module in (running_stages, held_leases):
        module.LEASE_SECONDS = 60 / FACTOR  # type: ignore[attr-defined]
    running_stages.LEASE_ENDURANCE = 900 / FACTOR
    acquire, renew, take_over = Ledger.acquire, Ledger.renew, Ledger.take_over
    short = 60 / FACTOR
    Ledger.acquire = lambda self, key, holder, seconds=short: acquire(self, key, holder, seconds)  # type: ignore
    Ledger.renew = lambda self, lease, seconds=short: renew(self, lease, seconds)  # type: ignore
    Ledger.take_over = lambda self, key, seconds=short: take_over(self, key, seconds)  # type: ignore
    execute.socket.gethostname = lambda: given["host"]  # type: ignore[attr-defined]
    folder, store = Path(given["folder"]), StoreAddress.model_validate(given["store"])
    settings = Settings(folder / given["host"], store, "http://127.0.0.1:9/api", True, False, given["credentials"])
    sys.executable = given["python"]
    launcher = SlurmLauncher(settings, Site(folder=str(folder / "shared"), poll_seconds=0.5))
    pipeline = probe_pipeline.small_pipeline()
    (home := folder / given["host"]).mkdir(exist_ok=True)
    run = probe_pipeline.execution(
        pipeline,
        profile(home, given["steps"], given["step_seconds"]),
        Ledger(Store(store)),
        home,
        launcher,
        select=NODE,
        run_id=given["host"],
    )
    run.observers.append(Printer())  # type: ignore[arg-type]
    probe_pipeline.run_nodes(run, pipeline, until=NODE)
    return 0


class ControlPlane:
    """The process of a control plane, and what it said last."""

    def __init__(self, given: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        names = ("PATH", "SLURM_CONF", "HOME")
        env = {name: os.environ[name] for name in names if name in os.environ} | given["credentials"]
        env["MOXIN_STORE_PATIENCE"] = str(120 / FACTOR)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.thirty_four_days", "--control", json.dumps(given)],
            stdout=subprocess.PIPE,
            env=env,
            cwd=ROOT,
            text=True,
        )
        threading.Thread(target=self._read, args=(tell,), daemon=True).start()

    def _read(self, tell: Callable[[dict[str, Any]], None]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            tell(json.loads(line))


# --- the play ---------------------------------------------------------------------------------------------------------


class Play:
    """What happened so far, as the control planes tell it."""

    def __init__(self, proxy: Proxy, given: dict[str, Any]) -> None:
        self.proxy, self.given, self.planes = proxy, given, list[ControlPlane]()
        self.step, self.warnings, self.rows = 0, list[str](), list[str]()
        self.begun = time.monotonic()
        self._news = threading.Condition()
        self._metrics = self._due = 0
        self._status: int | None = None

    def tell(self, event: dict[str, Any]) -> None:
        """Take an event of a control plane."""
        with self._news:
            if event["event"] == "metric":
                self.step, self._metrics = int(event["step"]), self._metrics + 1
                self._news.notify_all()
            elif event["event"] == "state" or event.get("level") == "warning" or "following" in str(event):
                line = str(event.get("message") or event.get("state"))
                self.warnings.append(line)
                print(f"{time.monotonic() - self.begun:6.0f} s  {'':22} {line[:150]}", flush=True)

    def start_control_planes(self) -> None:
        """The first one, and another machine's whenever one crashed: as Prefect does it, ten times at most."""
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        for number in range(1, RESTARTS + 2):
            plane = ControlPlane({**self.given, "host": f"host-{number}"}, self.tell)
            self.planes.append(plane)
            status = plane.process.wait()
            if status >= 0:  # it ended by itself: what failed is not started again
                break
            time.sleep(CRASH_SEEN)
        with self._news:
            self._status = status
            self._news.notify_all()

    def await_end(self) -> int:
        """How the last control plane ended."""
        with self._news:
            self._news.wait_for(lambda: self._status is not None)
        return self._status or 0

    def await_step(self, step: int) -> bool:
        """Wait until the training has come so far, and on since its last interruption; False when all ended before."""
        with self._news:
            self._news.wait_for(lambda: self._status is not None or (self.step >= step and self._metrics >= self._due))
        return self._status is None

    def happen(self, trouble: Trouble) -> None:
        """Let something happen, without waiting for what becomes of it."""
        print(f"{time.monotonic() - self.begun:6.0f} s  {trouble.what:22} at step {self.step}", flush=True)
        self.rows.append(f"| {trouble.step / STEPS_A_DAY:.1f} | {trouble.what} | {self.step} |")
        if trouble.what in ("time limit", "node lost"):
            self._due = self._metrics + STOPS_WITHIN
        if trouble.what == "time limit":
            for number in slurm("squeue", "--me", "--noheader", "--format=%i").split():
                slurm("scancel", "--signal=TERM", number)
        elif trouble.what == "node lost":
            for process in psutil.process_iter(["cmdline"]):
                line = process.info["cmdline"] or []
                if "stages.core.runtime" in line and self.given["folder"] in " ".join(line):
                    process.kill()
        elif trouble.what == "control plane lost":
            self.planes[-1].process.send_signal(signal.SIGKILL)
        else:
            answer = "503" if trouble.what == "store away" else "expired"
            self.proxy.rule = lambda method, path: answer
            time.sleep(OUTAGE if answer == "503" else 5.0)
            self.proxy.rule = lambda method, path: None


@contextmanager
def own_store(folder: Path) -> Iterator[Settings]:
    """An object store on free loopback ports, for as long as the block lasts."""
    keys = state_file.credentials(folder)
    state: dict[str, Any] = {}
    for name in ("s3", "master", "volume", "filer"):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            state[f"{name}_port"] = listener.getsockname()[1] % 40_000 + 10_000
    lifecycle.start(folder, state, "store", object_store.command(folder, state, keys), lambda line: None)
    address = StoreAddress(bucket=BUCKET, endpoint=f"http://127.0.0.1:{state['s3_port']}")
    credentials = {"AWS_ACCESS_KEY_ID": keys["s3_access_key"], "AWS_SECRET_ACCESS_KEY": keys["s3_secret_key"]}
    settings = Settings(folder, address, "http://127.0.0.1:9/api", True, False, credentials)
    try:
        lifecycle.wait(folder, state, "store", lambda: object_store.ready(settings))
        yield settings
    finally:
        processes.stop(state, "store", 0.0)


def curve(store: Store) -> list[dict[str, float]]:
    """The rows of the training's metrics."""
    ledger = Ledger(store)
    record = ledger.node("test", NODE)
    result = ledger.manifest(record.key) if record else None
    return metric_rows(store, result[0].metrics_object) if result else []


def play(days: int, step_seconds: float) -> int:
    steps = days * STEPS_A_DAY
    with tempfile.TemporaryDirectory(prefix="moxin-days-") as name:
        folder = Path(name)
        for part in ("store", "unbroken", "broken", "shared"):
            (folder / part).mkdir()
        with own_store(folder / "store") as settings, proxied(str(settings.store.endpoint)) as proxy:
            os.environ.update(settings.store_environment())
            pipeline = probe_pipeline.small_pipeline()
            whole, broken = (
                Store(settings.store.model_copy(update={"prefix": f"{part}/"})) for part in ("unbroken", "broken")
            )
            for store, part, last in ((whole, "unbroken", NODE), (broken, "broken", "shards")):
                run = probe_pipeline.execution(
                    pipeline, profile(folder / part, steps, 0.0), Ledger(store), folder / part, select=f"+{last}"
                )
                probe_pipeline.run_nodes(run, pipeline, until=last)
            given = {
                "folder": str(folder),
                "python": probe_pipeline.python_with_probes(folder),
                "store": broken.address.model_copy(update={"endpoint": proxy.url}).model_dump(),
                "credentials": dict(settings.credentials),
                "steps": steps,
                "step_seconds": step_seconds,
            }
            the_play = Play(proxy, given)
            the_play.start_control_planes()
            for trouble in troubles(days):
                if not the_play.await_step(trouble.step):
                    break
                the_play.happen(trouble)
            status = the_play.await_end()
            attempts = Ledger(broken).attempts(Ledger(broken).node("test", NODE).key) if not status else []  # type: ignore
            equal = curve(broken) == curve(whole) and len(curve(whole)) == steps
            print("\n| day | what | step |\n| ---: | --- | ---: |")
            print("\n".join(the_play.rows))
            ends = [f"{attempt.exit_class}" for attempt in attempts]
            print(f"\n{len(attempts)} attempts ({', '.join(f'{ends.count(e)} {e}' for e in sorted(set(ends)))})")
            print(f"{len(the_play.planes)} control planes, {time.monotonic() - the_play.begun:.0f} s of play")
            print(f"it ended: {'NO' if status else 'yes'}; its curve is an unbroken run's: {'yes' if equal else 'NO'}")
            return 0 if status == 0 and equal else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--days", type=int, default=34)
    parser.add_argument("--step-seconds", type=float, default=0.5)
    parser.add_argument("--control", help=argparse.SUPPRESS)
    options = parser.parse_args()
    return control(json.loads(options.control)) if options.control else play(options.days, options.step_seconds)


if __name__ == "__main__":
    sys.exit(main())
