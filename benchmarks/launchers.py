"""What each launcher costs on this machine: from a node's lease to its published result, less the stage's own time; image builds.

    python -m benchmarks.launchers --launchers process,docker,slurm [--repeat 5] [--build]

It has an installation of its own (MOXIN_HOME, or else .moxin/benchmark). Docker needs an engine (infra/dev/docker.sh), Slurm a cluster
(infra/dev/slurm.sh; SLURM_CONF). The stage is `collect` writing a listing: milliseconds of work, and the data environment's imports.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

from benchmarks.orchestration import machine
from flows import derived, embedded, images, profiles
from flows.execute import Execution
from flows.launch import launcher
from flows.settings import Settings
from stages.collect.spec import Collect
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from stages.core.store import Store

ROOT = Path(__file__).resolve().parents[1]
LISTING = "".join(f'[[node.collect.{port}]]\nuri = "file:///{port}"\nformat = "jsonl"\nsource = "{port}"\n' for port in ("text", "web", "code"))


def overheads(name: str, settings: Settings, repeat: int, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of each attempt by the control plane's clock, and what the stage itself took of them."""
    pipeline = Pipeline([Collect(name="collect")])
    whole, own = [], []
    (folder / "probe.toml").write_text(LISTING, encoding="utf-8")
    engine = launcher(name, settings)
    for _ in range(repeat):
        trial = f"collect.seed={uuid.uuid4().int % 10**9}"
        profile = profiles.load("probe", pipeline, [trial], folder)
        run = Execution(f"benchmark-{name}", profile, Ledger(Store(settings.store)), engine, settings.home, frozenset({"collect"}))
        outcome = run.node(pipeline["collect"], {})
        whole.append(outcome.seconds)
        own.append(outcome.result.attempt.wall_seconds)
    return whole, own


def builds() -> list[str]:
    """Seconds of building a stage's image on an environment that is there: what a change of code costs."""
    client, wheels = images.engine(), Path(os.environ["MOXIN_HOME"]) / "wheels"
    rows = []
    for stage in ("collect", "pretrain"):
        (image,) = images.select(derived.stages(), [stage])
        images.build(client, [image], wheels, print)
        client.images.remove(image.reference, force=True)
        started = time.perf_counter()
        images.build(client, [image], wheels, lambda line: None)
        rows.append(f"| stage {stage} on environment {image.env} | {time.perf_counter() - started:.1f} |")
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", default="process")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--build", action="store_true", help="time image builds too")
    options = parser.parse_args()
    os.environ.setdefault("MOXIN_HOME", str(ROOT / ".moxin" / "benchmark"))
    about = list(machine())
    settings = embedded.up(say=lambda line: print(line, file=sys.stderr))
    os.environ.update(settings.environment())
    print("\n".join([*about, "", "| launcher | median s | range s | of it the stage s | overhead s |", "| --- | --- | --- | --- | --- |"]))
    with tempfile.TemporaryDirectory() as folder:
        for name in options.launchers.split(","):
            whole, own = overheads(name, settings, options.repeat, Path(folder))
            overhead = statistics.median(w - o for w, o in zip(whole, own, strict=True))
            print(f"| {name} | {statistics.median(whole):.2f} | {min(whole):.2f} to {max(whole):.2f} | {statistics.median(own):.2f} | {overhead:.2f} |")
    if options.build:
        print("\n".join(["", "| build | s |", "| --- | --- |", *builds()]))


if __name__ == "__main__":
    main()
