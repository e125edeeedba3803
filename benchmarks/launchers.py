"""What each launcher costs on this machine, with a stage that waits a known time; how long images take to build, and
their sizes.

    python -m benchmarks.launchers [--launchers process,docker,slurm] [--repeat 5] [--build]

It has an installation of its own (MOXIN_HOME, or else .moxin/benchmark). Docker needs a daemon (infra/dev/docker.sh),
Slurm a cluster (infra/dev/slurm.sh; SLURM_CONF). The stage is probes/wait: whatever an attempt takes beyond the wait is
overhead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.orchestration import PROBE_SECONDS, PROBES, machine, stand_in, wait_stage
from flows import environments, generated_files, image_checks, images, local_services, profiles
from flows.environments import Image
from flows.execute import Execution
from flows.launch import launcher
from flows.settings import Settings
from stages.core.bundle import core_files
from stages.core.files import ROOT
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from stages.core.store import Store

PROBE = "moxin/benchmark-probe"
HEAD = "| launcher | overhead s | range s | of it launcher and control plane s | of it in the stage's process s |"


def probe_image(client: Any, environment: str, probes: Path, reference: str, labels: dict[str, str]) -> Image:
    """An image of probe stages: the real environment "data", `stages/core`, and a folder of stages on top."""
    entry = '["python", "-m", "stages.core.runtime"]'
    with tempfile.TemporaryDirectory() as name:
        context = Path(name)
        (context / "Dockerfile").write_text(
            f"FROM {environment}\nCOPY stages /app/stages\nENTRYPOINT {entry}\n", encoding="utf-8"
        )
        for path in (ROOT / "stages" / "__init__.py", *core_files()):
            copy(path, context / path.relative_to(ROOT))
        for path in sorted(probes.rglob("*.py")):
            copy(path, context / "stages" / path.relative_to(probes))
        client.images.build(path=name, tag=reference, labels=labels, network_mode="none", rm=True)
    return Image("probe", "data", reference, environment, {})


def copy(source: Path, target: Path) -> None:
    """Copy a file into a folder that may not be there yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def overheads(name: str, settings: Settings, repeat: int, folder: Path) -> list[tuple[float, float]]:
    """Seconds beyond the wait of each attempt, from before its lease to its published result, and of them the stage's
    own process.
    """
    pipeline = Pipeline([wait_stage()(name="wait")])
    (folder / "probe.toml").write_text("[resources.wait]\ncpus = 1\nmemory_gib = 1\n", encoding="utf-8")
    engine = launcher(name, settings)
    overhead = []
    for _ in range(repeat + 1):
        trial = [f"wait.trial={uuid.uuid4().hex}", f"wait.seconds={PROBE_SECONDS}"]
        profile = profiles.load("probe", pipeline, trial, folder)
        run = Execution(
            f"benchmark-{name}", profile, Ledger(Store(settings.store)), engine, settings.home, frozenset({"wait"})
        )
        outcome = run.node(pipeline["wait"], {})
        overhead.append((outcome.seconds - PROBE_SECONDS, outcome.result.attempt.wall_seconds - PROBE_SECONDS))
    return overhead[1:]  # the first reads files that the others find in memory


def launchers(names: list[str], settings: Settings, repeat: int) -> Iterator[str]:
    """The table of the launchers, a row at a time."""
    yield HEAD
    yield "| --- | ---: | ---: | ---: | ---: |"
    with tempfile.TemporaryDirectory() as folder:
        own_python, with_probes = sys.executable, stand_in(Path(folder))
        for name in names:
            sys.executable = (
                own_python if name == "docker" else with_probes
            )  # what processes and jobs start stages with
            if name == "docker":
                client = images.docker_client()
                (real,) = images.select(generated_files.stages(), ["collect"])
                images.build(client, [real], wheels(), quiet)
                image = probe_image(client, real.environment, PROBES, PROBE, {"moxin.benchmark": "1"})
                environments.stage_image = lambda stage, env, tag=image: tag
            rows = overheads(name, settings, repeat, Path(folder))
            whole, inside = [row[0] for row in rows], [row[1] for row in rows]
            rest = statistics.median(w - o for w, o in rows)
            yield (
                f"| {name} | {statistics.median(whole):.2f} | {min(whole):.2f} to {max(whole):.2f} | {rest:.2f} |"
                f" {statistics.median(inside):.2f} |"
            )


def builds() -> Iterator[str]:
    """Seconds and sizes of every environment built from nothing, and of the stages on it, with wheels that are here
    already.
    """
    client, table = images.docker_client(), generated_files.stages()
    yield "| environment | wheels MB | build s | image MB | stages | build of each s | each adds KB |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for env in sorted(set(table.values())):
        chosen = images.select(table, [stage for stage, of in table.items() if of == env])
        size = sum(path.stat().st_size for path in images.wheelhouse(env, wheels(), quiet))
        whole = timed(lambda env=env: images.build_environments(client, [env], wheels(), quiet, rebuild=True))
        each = [
            timed(lambda image=image: images.build_stages(client, [image], quiet, rebuild=True)) for image in chosen
        ]
        rows = image_checks.image_rows(client, chosen)
        own_kib, image = (
            statistics.median(row.own_kib for row in rows),
            client.images.get(chosen[0].environment).attrs["Size"],
        )
        yield (
            f"| {env} | {size / 1e6:.0f} | {whole:.0f} | {image / 1e6:.0f} | {len(chosen)} |"
            f" {statistics.median(each):.1f} | {own_kib * 1.024:.0f} |"
        )


def timed(act: Any) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def wheels() -> Path:
    """Where wheels are kept."""
    return Path(os.environ["MOXIN_HOME"]) / "wheels"


def quiet(line: str) -> None:
    """Say nothing."""


def versions(names: list[str]) -> Iterator[str]:
    """The versions of the engines that are measured."""
    if "docker" in names:
        about = images.docker_client().version()
        yield f"- Docker {about['Version']}, {images.docker_client().info()['Driver']}"
    if "slurm" in names:
        yield (
            f"- {subprocess.run(['sinfo', '--version'], capture_output=True, text=True, check=True).stdout.strip()},"
            " two virtual nodes"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", default="process", help="names, with commas between them; none: only builds")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--build", action="store_true", help="time image builds too: minutes")
    options = parser.parse_args()
    os.environ.setdefault("MOXIN_HOME", str(ROOT / ".moxin" / "benchmark"))
    names = [name for name in options.launchers.split(",") if name]
    print("\n".join([*machine(), *versions(names), ""]), flush=True)
    if names:
        settings = local_services.up(say=lambda line: print(line, file=sys.stderr))
        os.environ.update(settings.environment())
        for line in launchers(names, settings, options.repeat):
            print(line, flush=True)
    if options.build:
        print()
        for line in builds():
            print(line, flush=True)


if __name__ == "__main__":
    main()
