"""What the control plane takes as pipelines and ledgers grow: processor time, memory and store requests of commands.

    python -m benchmarks.load plan [--sizes 100 300 1000]          # a generated pipeline of so many nodes
    python -m benchmarks.load ledger [--sizes 1000 3000 10000]     # so many results of a pipeline of 50 nodes
    python -m benchmarks.load stages [--stages 64]                 # so many stages at once (benchmarks/load_stages.py)
    python -m benchmarks.load month [--days 30]                    # the events of a node (benchmarks/load_month.py)

The store is SeaweedFS in a process of its own. Each command runs in a process of its own, as `moxin` runs it, over a
pipeline of the tests' probe stages; counted are its processor seconds, those of what it imports on the way too, and
the requests that it makes of the store.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import benchmarks.probe_stages  # noqa: F401 - before what needs them
from benchmarks.memory import peak_kib
from flows import profiles
from stages import pipeline as declared
from stages.core import connection
from stages.core.files import ROOT
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from stages.core.store import Store
from tests.support.campaign_store import OwnStore, own_store
from tests.support.generated_ledger import Filler, layered_pipeline, profile_text

PROFILE = "load"
LEDGER_NODES = 50
FAILED = 10
"""Each so many-th result had a failed attempt before."""
PLANS = {
    "plan, nothing made": ["plan", "--json"],
    "plan, all made": ["plan", "--json"],
    "plan, sources changed": ["plan", "--json", "--set", "probe_source.parts=2"],
    "plan of a tenth": ["plan", "--json", "--select", "+{last}"],
    "why": ["why", "{last}"],
}
READS = {
    "ls": ["ls", "--json"],
    "plan": ["plan", "--json"],
    "why": ["why", "{last}"],
    "show": ["show", "{last}", "--json"],
    "show --history": ["show", "{last}", "--history", "--json"],
    "gc (says only)": ["gc", "--json", "--min-age", "0"],
}


# --- a command in a process of its own --------------------------------------------------------------------------------


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """The requests that every client which is made meanwhile makes, by operation."""
    counts, full = Counter[str](), connection._client

    def counting(*given: Any) -> Any:
        client = full(*given)
        client.meta.events.register("before-call.s3", lambda model, **_: counts.update([model.name]))
        return client

    connection._client = counting
    try:
        yield counts
    finally:
        connection._client = full


@contextlib.contextmanager
def generated(nodes: int, folder: Path) -> Iterator[Pipeline]:
    """The pipeline and the profile of this process are generated ones."""
    pipeline, (before, load) = layered_pipeline(nodes), (declared.PIPELINE, profiles.load)

    def load_generated(name: str, pipeline: Pipeline, overrides: Sequence[str] = (), folder: Path = folder) -> Any:
        return load(PROFILE, pipeline, overrides, folder)

    declared.PIPELINE, profiles.load = pipeline, load_generated
    try:
        yield pipeline
    finally:
        declared.PIPELINE, profiles.load = before, load


def command(given: dict[str, Any]) -> dict[str, Any]:
    """Run a command of `moxin` here, and say what it took."""
    from flows.cli import COLLECTED_AFTER, app

    gc.set_threshold(*COLLECTED_AFTER)
    with generated(given["nodes"], Path(given["folder"])) as pipeline, counted() as requests:
        words = [word.format(last=[*pipeline.nodes][-1]) for word in given["words"]]
        out = io.StringIO()
        wall, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(out):
            app(words, standalone_mode=False)
        return {
            "cpu": time.process_time() - cpu,
            "wall": time.perf_counter() - wall,
            "mib": peak_kib() / 1024,
            "requests": dict(requests),
            "said": out.getvalue(),
        }


class Place:
    """A store and a home, and commands over them."""

    def __init__(self, store: OwnStore, folder: Path, prefix: str) -> None:
        self.folder = folder
        self.settings = store.settings
        self.address = store.settings.store.model_copy(update={"prefix": prefix})
        self.ledger = Ledger(Store(self.address))

    def fill(self, nodes: int, generations: range, failed: int = 0) -> None:
        """Results of so many nodes under several settings, one after the other; the last ones have the names."""
        pipeline = layered_pipeline(nodes)
        for generation in generations:
            (self.folder / f"{PROFILE}.toml").write_text(profile_text(pipeline, generation))
            profile = profiles.load(PROFILE, pipeline, (), self.folder)
            Filler(self.ledger).fill(pipeline, profile, f"run-{generation}", failed)

    def run(self, nodes: int, words: Sequence[str]) -> dict[str, Any]:
        """A command in a process of its own; what it took."""
        given = {"nodes": nodes, "folder": str(self.folder), "words": list(words)}
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "AWS_", "MOXIN_"))}
        env = clean | self.settings.store_environment() | {
            "MOXIN_HOME": str(self.folder), "MOXIN_S3_ENDPOINT": str(self.address.endpoint),
            "MOXIN_S3_BUCKET": self.address.bucket, "MOXIN_S3_PREFIX": self.address.prefix,
            "PREFECT_API_URL": "http://127.0.0.1:9/api", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        line = [sys.executable, "-m", "benchmarks.load", "--command", json.dumps(given)]
        done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{words}: {done.stderr[-3000:]}")
        return json.loads(done.stdout)


def row(what: str, size: int, took: dict[str, Any]) -> str:
    """A line of the table."""
    requests = ", ".join(f"{count:,} {name}" for name, count in sorted(took["requests"].items()))
    total = sum(took["requests"].values())
    return (
        f"| {what} | {size:,} | {took['cpu']:.2f} | {took['wall']:.2f} | {took['mib']:.0f} | {total:,} ({requests}) |"
    )


def plans(store: OwnStore, folder: Path, sizes: Sequence[int]) -> Iterator[str]:
    """Plans of pipelines of several sizes."""
    for size in sizes:
        empty, full = (Place(store, folder / f"{name}-{size}", f"{name}-{size}/") for name in ("empty", "full"))
        for place, generations in ((empty, 0), (full, 1)):
            place.folder.mkdir()
            (place.folder / f"{PROFILE}.toml").write_text(profile_text(layered_pipeline(size)))
            place.fill(size, range(generations))
        for what, words in PLANS.items():
            yield row(what, size, (empty if "nothing" in what else full).run(size, words))


def ledgers(store: OwnStore, folder: Path, sizes: Sequence[int]) -> Iterator[str]:
    """Commands over a ledger that grows: the same nodes, under more and more settings."""
    place, generations = Place(store, folder / "grows", "grows/"), 0
    place.folder.mkdir()
    for size in sizes:
        place.fill(LEDGER_NODES, range(generations, size // LEDGER_NODES), FAILED)
        generations = size // LEDGER_NODES
        for what, words in READS.items():
            yield row(what, size, place.run(LEDGER_NODES, words))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["plan", "ledger", "stages", "month"], default="plan")
    parser.add_argument("--sizes", type=int, nargs="+", help="nodes, or results")
    parser.add_argument("--stages", type=int, default=64)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--command", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.command:
        print(json.dumps(command(json.loads(options.command))))
        return
    from benchmarks.orchestration import machine

    print("\n".join(machine()), flush=True)
    with tempfile.TemporaryDirectory(prefix="moxin-load-") as name:
        folder = Path(name)
        if options.what == "month":
            from benchmarks import load_month

            load_month.main(folder, options.days)
            return
        (folder / "store").mkdir()
        with own_store(folder / "store") as store:
            os.environ.update(store.settings.store_environment())
            if options.what == "stages":
                from benchmarks import load_stages

                load_stages.main(store, folder, options.stages)
                return
            print("\n| what | size | CPU s | wall s | MiB | requests |\n| --- | ---: | ---: | ---: | ---: | --- |")
            sizes = options.sizes or ([100, 300, 1000] if options.what == "plan" else [1000, 3000, 10000])
            for line in (plans if options.what == "plan" else ledgers)(store, folder, sizes):
                print(line, flush=True)


if __name__ == "__main__":
    main()
