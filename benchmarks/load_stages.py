"""Many stages at once, under one control plane: what each costs it, and what bounds their number.

    python -m benchmarks.load stages [--stages 64] [--seconds 90]

A flow over so many nodes that wait, each a process of its own by the process launcher, with a real store and a real
Prefect server. Looked at every second while they run: threads, open files and memory of the control plane; leases, of
which the oldest says how late heartbeats come; and afterwards the server's log and database.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.orchestration import stand_in, wait_stage
from flows.local_services import processes
from stages.core.files import ROOT
from stages.core.ledger import Ledger
from stages.core.store import Store
from tests.support.campaign_store import OwnStore
from tests.support.prefect_runs import prefect_server


def flow_of(folder: Path, count: int, seconds: float) -> None:
    """The flow, in this process."""
    Wait = wait_stage()
    from flows.cli import running

    running.configure_prefect()
    from flows import flow as flow_module
    from flows import profiles
    from stages.core.graph import Pipeline

    flow_module.PIPELINE = Pipeline([Wait(name=f"wait_{n}") for n in range(count)])
    text = "".join(f'[node.wait_{n}]\ntrial = "{n}"\n' for n in range(count))
    (folder / "load.toml").write_text(f"parallel = {count}\n[stage.wait]\nseconds = {seconds}\n{text}")
    load = profiles.load
    profiles.load = lambda name, pipeline, overrides=(), folder=folder: load("load", pipeline, overrides, folder)
    sys.executable = stand_in(folder)
    begun, cpu = time.perf_counter(), time.process_time()
    state: Any = flow_module.moxin(flow_module.ProfileName("tiny"), return_state=True)
    took = {"wall": time.perf_counter() - begun, "cpu": time.process_time() - cpu}
    print(json.dumps({"state": state.type.value, "message": state.message} | took), flush=True)
    running.end(0, True)


def looked_at(process: subprocess.Popen[str], ledger: Ledger) -> dict[str, float]:
    """The most of everything while the flow runs."""
    most: dict[str, float] = {}
    me, begun = psutil.Process(process.pid), time.monotonic()
    while process.poll() is None:
        try:
            running = sum("stages.core.runtime" in " ".join(one.cmdline()) for one in me.children())
            now = {
                "stages": running, "threads": me.num_threads(), "open files": me.num_fds(),
                "MiB": me.memory_info().rss / 2**20,
            }  # fmt: skip
            if running:
                there, rows = ledger.store.now(), list(ledger.store.list("leases/"))
                now["seconds since the oldest heartbeat"] = max((there - row.written for row in rows), default=0.0)
            if running > most.get("stages", 0):
                now["seconds until most ran"] = time.monotonic() - begun
            most = {name: max(now.get(name, 0.0), most.get(name, 0.0)) for name in {**most, **now}}
        except psutil.Error:
            pass
        time.sleep(1.0)
    return most


def main(store: OwnStore, folder: Path, count: int, seconds: float = 90.0) -> None:
    """Measure and print."""
    (folder / "server").mkdir()
    (folder / "home").mkdir()
    with prefect_server(folder / "server", store.settings) as settings:
        mine = settings.environment() | {
            "MOXIN_HOME": str(folder / "home"), "PREFECT_HOME": str(folder / "client"), "PYTHONPATH": str(ROOT),
            "MOXIN_S3_ENDPOINT": str(settings.store.endpoint), "MOXIN_S3_BUCKET": settings.store.bucket,
            "MOXIN_S3_PREFIX": "stages/",
        }  # fmt: skip
        ledger = Ledger(Store(settings.store.model_copy(update={"prefix": "stages/"})))
        server = server_process(folder / "server")
        before = server.cpu_times()
        words = [sys.executable, "-m", "benchmarks.load_stages", str(folder / "home"), str(count), str(seconds)]
        with open(folder / "errors", "w") as errors:
            env = {**os.environ, **mine}
            flow = subprocess.Popen(words, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=errors)
        most, (out, _) = looked_at(flow, ledger), flow.communicate()
        after = server.cpu_times()
        print(f"\n{count} stages, {seconds:g} s each: {out.strip() or (folder / 'errors').read_text()[-2000:]}")
        for name, value in most.items():
            print(f"- {name}: {value:,.0f}")
        used = after.user + after.system - before.user - before.system
        log = (folder / "server" / "logs" / "prefect.log").read_text(errors="replace")
        print(f"- Prefect server: {used:.0f} s of processor, {server.memory_info().rss >> 20} MiB")
        print(f"- 'database is locked' in its log: {log.count('database is locked')}")
        files = (folder / "server" / "prefect").glob("prefect.db*")
        print(f"- its database: {sum(one.stat().st_size for one in files) / 2**20:.1f} MiB")


def server_process(folder: Path) -> psutil.Process:
    """The Prefect server of a state folder."""
    state, _ = processes.find(folder)
    return psutil.Process(int(str(state["prefect"]).partition(":")[0]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    flow_of(given.folder, given.count, given.seconds)
