"""What orchestration costs beside DVC and Snakemake: the same graph, edges and work in each of them, in one run.

    python3 -m venv PEERS && PEERS/bin/pip install -r benchmarks/orchestration-peers.txt
    python -m benchmarks.orchestration_peers --peers PEERS/bin [--repeat 5] [--node sft_tulu] [--only dvc]

The graph is `stages.pipeline.PIPELINE`. A node writes the digest of its own name, of one field and of what its parents
wrote; the peers' nodes are a line of shell, ours a process of a stage (benchmarks.step_pipeline). Measured of each: a
run with nothing to do; a run after a field of one node has changed, which makes that node anew and all that follow from
it; a run in which that node fails (until the error is told, and to its end); and the run after that was mended. Ours
has an installation of its own (MOXIN_HOME, or else .moxin/benchmark-peers), whose services are up before anything is
timed.

Nextflow is not among them: it needs a Java and its own download, which no package registry has.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.orchestration import machine
from benchmarks.step_pipeline import edges
from flows import deploy, local_services
from flows.local_services.processes import MARKS
from stages.core.files import ROOT
from stages.pipeline import PIPELINE

JOBS = 2
"""Nodes at one time, where a tool can: DVC runs one after the other."""
SCRIPT = """set -e
out=$1 trial=$2 fail=$3
shift 3
[ "$fail" = False ] || { echo "$out fails, as it was told to" >&2; exit 1; }
{ echo "$out $trial"; cat "$@" /dev/null; } | sha256sum > "$out"
"""
"""The work of a peer's node: step.sh OUT TRIAL FAIL PARENTS..."""
QUIET = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}

Fields = dict[str, dict[str, str | bool]]
"""Of each node what decides its result: `trial`, `fail`."""


@dataclass(frozen=True)
class Timing:
    """One command: seconds to its end, of processor (itself and what it started), of processor in services that were
    up before, and until it told of the failed node.
    """

    wall: float
    cpu: float
    services: float = 0.0
    until_error: float | None = None
    output: str = ""


@dataclass
class Tool:
    """One of the tools: how it is given the fields, the command that brings everything up to date, and what its output
    says where a node failed.
    """

    name: str
    version: str
    folder: Path
    write: Callable[[Fields], list[str]]
    """Puts the fields where the tool reads them; the command."""
    failed: Callable[[str], str]
    """A node's name to the words that tell of its failure."""
    executed: Callable[[float, str], int]
    """How many nodes a run has made, by when it began (seconds since 1970) and what it printed."""
    env: dict[str, str] = field(default_factory=dict[str, str])
    services: Callable[[], float] = lambda: 0.0


def fields_of(changed: Mapping[str, Mapping[str, str | bool]]) -> Fields:
    return {name: {"trial": "", "fail": False} | dict(changed.get(name, {})) for name in edges()}


# --- the tools --------------------------------------------------------------------------------------------------------


def dvc(peers: Path, folder: Path) -> Tool:
    """A DVC project without git: dvc.yaml has a stage for each node, params.yaml (JSON is YAML) its fields."""
    env, command = os.environ | QUIET, [str(peers / "dvc"), "repro"]
    folder.mkdir()
    (folder / "step.sh").write_text(SCRIPT, encoding="utf-8")
    (folder / "out").mkdir()
    for words in (("init", "--no-scm", "-q"), ("config", "core.analytics", "false")):
        subprocess.run([str(peers / "dvc"), *words], cwd=folder, env=env, check=True)
    stages = {
        name: {
            "cmd": " ".join(
                [
                    "sh step.sh",
                    f"out/{name}",
                    f"'${{{name}.trial}}'",
                    f"${{{name}.fail}}",
                    *(f"out/{p}" for p in parents),
                ]
            ),
            "deps": [f"out/{parent}" for parent in parents],
            "outs": [f"out/{name}"],
        }
        for name, parents in edges().items()
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}, indent=1), encoding="utf-8")

    def write(fields: Fields) -> list[str]:
        words = {name: row | {"fail": str(row["fail"])} for name, row in fields.items()}
        (folder / "params.yaml").write_text(json.dumps(words, indent=1), encoding="utf-8")
        return command

    words = "failed to reproduce '{}'".format
    return Tool("DVC", version(peers / "dvc"), folder, write, words, outputs_since(folder), env)


def snakemake(peers: Path, folder: Path) -> Tool:
    """A Snakefile with a rule for each node, whose parameters are its fields in config.json."""
    folder.mkdir()
    (folder / "step.sh").write_text(SCRIPT, encoding="utf-8")
    parents_of = edges()
    leaves = [name for name in parents_of if not PIPELINE.descendants(name)]
    rules = ['configfile: "config.json"', f"rule all:\n    input: {', '.join(repr(f'out/{leaf}') for leaf in leaves)}"]
    for name, parents in parents_of.items():
        inputs = [f"    input: {', '.join(repr(f'out/{parent}') for parent in parents)}"] if parents else []
        params = ", ".join(f"{key}=config[{name!r}][{key!r}]" for key in ("trial", "fail"))
        shell = "    shell: \"sh step.sh {output} '{params.trial}' {params.fail} {input}\""
        rules.append("\n".join([f"rule {name}:", *inputs, f"    output: 'out/{name}'", f"    params: {params}", shell]))
    (folder / "Snakefile").write_text("\n\n".join(rules) + "\n", encoding="utf-8")

    def write(fields: Fields) -> list[str]:
        (folder / "config.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")
        return [str(peers / "snakemake"), "--cores", str(JOBS)]

    env = os.environ | QUIET
    words = "Error in rule {}:".format
    return Tool("Snakemake", version(peers / "snakemake"), folder, write, words, outputs_since(folder), env)


def outputs_since(folder: Path) -> Callable[[float, str], int]:
    """How many outputs of a peer are newer than a time."""
    return lambda began, _: sum(1 for path in (folder / "out").iterdir() if path.stat().st_mtime >= began)


def moxin(home: Path) -> Tool:
    """Ours. What the services take meanwhile is counted beside it: Prefect's server and the store work for it."""

    def write(fields: Fields) -> list[str]:
        changes = [
            f"{name}.{key}={json.dumps(value)}"
            for name, row in fields.items()
            for key, value in row.items()
            if value not in ("", False)
        ]
        overrides = [word for change in changes for word in ("--set", change)]
        return [sys.executable, "-m", "benchmarks.step_pipeline", "run", *overrides]

    env = os.environ | QUIET | {"PYTHONPATH": str(ROOT), "MOXIN_HOME": str(home)}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return Tool(
        "Moxin", commit.strip(), ROOT, write, " {} ".format, lambda _, output: ran(output), env,
        lambda: services_cpu(home),
    )  # fmt: skip


def ran(output: str) -> int:
    """How many nodes a run of ours has made, by its last line."""
    count = re.search(r"(\d+) nodes? ran", output)
    return int(count[1]) if count else 0


def version(program: Path) -> str:
    return subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout.strip()


def services_cpu(home: Path) -> float:
    """Processor seconds that the services of an installation have taken, with those that they started."""
    state = json.loads((home / "services.json").read_text(encoding="utf-8"))
    seconds = 0.0
    for name in MARKS:
        process = psutil.Process(int(state[name].partition(":")[0]))
        for each in (process, *process.children(recursive=True)):
            times = each.cpu_times()
            seconds += times.user + times.system
    return seconds


# --- measuring --------------------------------------------------------------------------------------------------------


def timed(tool: Tool, fields: Fields, failing: str = "", makes: int | None = None) -> Timing:
    """Run the tool once. failing: the node that is to fail. makes: how many nodes it has to make. Raises SystemExit
    where it ends in another way, or makes others.
    """
    command, words = tool.write(fields), tool.failed(failing)
    began = time.time()
    before, served, started = resource.getrusage(resource.RUSAGE_CHILDREN), tool.services(), time.perf_counter()
    until_error, lines = None, list[str]()
    with subprocess.Popen(
        command, cwd=tool.folder, env=tool.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if failing and until_error is None and words in line and ("failed" in line or "Error" in line):
                until_error = time.perf_counter() - started
            lines.append(line)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if (process.returncode != 0) != bool(failing) or (failing and until_error is None):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(lines)[-3000:]}")
    if makes is not None and (count := tool.executed(began, "".join(lines))) != makes:
        raise SystemExit(f"{' '.join(command)} made {count} nodes, not {makes}:\n{''.join(lines)[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timing(wall, cpu, tool.services() - served, until_error, "".join(lines))


def measure(tool: Tool, node: str, repeat: int) -> dict[str, list[Timing]]:
    """Each kind of run `repeat` times, after one that makes everything."""
    print(f"{tool.name} {tool.version}: the first run ...", file=sys.stderr)
    timings: dict[str, list[Timing]] = {what: [] for what in ("no-op", "changed", "failed", "mended")}
    mark = f"{time.time():.0f}"  # another value than any run of this installation before
    current = fields_of({node: {"trial": mark}})
    timed(tool, current)
    for number in range(repeat):
        timings["no-op"].append(timed(tool, current, makes=0))
        current = fields_of({node: {"trial": f"{mark} {number}"}})
        timings["changed"].append(timed(tool, current, makes=len(reached(node))))
        broken = {"trial": f"{mark} {number} broken", "fail": True}
        timings["failed"].append(timed(tool, fields_of({node: broken}), failing=node))
        current = fields_of({node: broken | {"fail": False}})
        timings["mended"].append(timed(tool, current, makes=len(reached(node))))
        print(f"{tool.name}: {number + 1} of {repeat}", file=sys.stderr)
    return timings


def rows(tool: Tool, timings: Mapping[str, list[Timing]], node: str) -> Iterable[str]:
    """Of each kind of run a row of the table."""
    count = len(reached(node))
    words = {
        "no-op": "nothing to do",
        "changed": f"one field changed: {count} of {len(edges())} nodes",
        "failed": "one node fails: to the end",
        "mended": f"mended: {count} nodes",
    }
    for what, each in timings.items():
        if what == "failed":
            yield row("one node fails: until it is told", tool, [t.until_error or 0.0 for t in each], None, None)
        services = [t.services for t in each] if tool.name == "Moxin" else None
        yield row(words[what], tool, [t.wall for t in each], [t.cpu for t in each], services)


def row(what: str, tool: Tool, wall: list[float], cpu: list[float] | None, services: list[float] | None) -> str:
    spent = f"{statistics.median(cpu):.2f}" if cpu else ""
    beside = f"{statistics.median(services):.2f}" if services else ""
    span = f"{min(wall):.2f} to {max(wall):.2f}"
    return f"| {what} | {tool.name} | {statistics.median(wall):.2f} | {span} | {spent} | {beside} |"


def reached(node: str) -> set[str]:
    """A node and all that follow from it."""
    return {node} | PIPELINE.descendants(node)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, type=Path, help="the programs' folder of an environment of the peers")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of every measurement")
    parser.add_argument("--node", default="sft_tulu", choices=edges(), help="the node that is changed, and that fails")
    parser.add_argument("--only", choices=("moxin", "dvc", "snakemake"), help="one tool alone")
    options = parser.parse_args()
    home = Path(os.environ.setdefault("MOXIN_HOME", str(ROOT / ".moxin" / "benchmark-peers"))).resolve()
    about = list(machine())
    folder = Path(tempfile.mkdtemp(prefix="orchestration-peers-"))
    peers = options.peers.resolve()
    tools: dict[str, Callable[[], Tool]] = {
        "moxin": lambda: moxin(home),
        "dvc": lambda: dvc(peers, folder / "dvc"),
        "snakemake": lambda: snakemake(peers, folder / "snakemake"),
    }
    lines: list[str] = []
    try:
        for name, make in tools.items():
            if options.only in (None, name):
                if name == "moxin":
                    local_services.up(after_server=deploy.register, say=lambda line: print(line, file=sys.stderr))
                tool = make()
                lines += rows(tool, measure(tool, options.node, options.repeat), options.node)
                about.append(f"- {tool.name} {tool.version}: `{' '.join(tool.write(fields_of({})))}`")
                if name == "moxin":
                    local_services.down()  # nothing of it runs beside the others
    finally:
        local_services.down()
        shutil.rmtree(folder, ignore_errors=True)
    head = [
        "",
        "| what | tool | median s | range s | CPU s | CPU s of its services |",
        "| --- | --- | ---: | --- | ---: | ---: |",
    ]
    print("\n".join([*about, *head, *lines]))


if __name__ == "__main__":
    main()
