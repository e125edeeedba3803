"""Rate of a data stage's tasks against the number of workers: `dedup` signs shards that lie in a store, in processes of
a pool, and as Ray tasks.

    python -m benchmarks.worker_rate [--workers 1,2] [--by processes,ray] [--shards 64] [--repeat 3]

Needs `moxin up` (or a store of your own, as for any command). Each row is a process of its own, that has signed before
it is timed: workers that start, import and load compiled code are the same whatever the corpus. `efficiency` is the
rate over that of the fewest workers by their number; `store` are the processor seconds of the store on this machine,
which shares its cores with the workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks.orchestration import machine
from flows.settings import Settings
from stages.core import reading
from stages.core.artifacts import FileEntry
from stages.core.messages import StoreAddress
from stages.core.store import Store
from stages.core.task_objects import StoreObjects
from stages.dedup import lsh
from stages.lib.data.spills import Cut
from stages.lib.data.workers import Pool
from stages.lib.formats.corpus import shards_of
from stages.lib.formats.documents import DocumentWriter

PREFIX = "benchmarks/worker-rate/"
SIGNER = ["characters", 13, 128, 18, 7, 1]
"""SlimPajama's recipe."""
SHARD_BYTES = 8 << 20
HEAD = (
    "| by | workers | documents/s | range | MB/s | efficiency | store s |\n"
    "| --- | ---: | ---: | --- | ---: | ---: | ---: |"
)


def texts(size: int) -> Iterator[str]:
    """Pieces of 2 kB of the sources of installed packages, as many bytes as asked for: again where they end."""
    given = 0
    while True:
        for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            for start in range(0, len(text), 2000):
                piece = text[start : start + 2000]
                yield piece
                given += len(piece)
                if given >= size:
                    return


def store_corpus(store: Store, shards: int, folder: Path) -> list[dict[str, Any]]:
    """Write the corpus to the store; its shards."""
    with DocumentWriter(folder) as writer:
        for number, text in enumerate(texts(shards * SHARD_BYTES)):
            writer.add(f"{number}", text, "sources")
    entries: list[FileEntry] = []
    for path in sorted(folder.glob("part-*.parquet")):
        entry = store.put_file(f"{PREFIX}corpus/{path.name}", path)
        entries.append(entry.model_copy(update={"path": path.name}))
    return [asdict(shard) for shard in shards_of([entries], SHARD_BYTES)]


def measure(address: str, shards: list[dict[str, Any]], by: str, workers: int, scratch: str) -> dict[str, float]:
    """Sign all shards, in this process; the seconds by the clock of the second time, and what was read."""
    store = Store(StoreAddress.model_validate_json(address))
    reading.share(store.address, "benchmark")
    rule = {"signer": SIGNER, "least": {"characters": 0, "filter": "slimpajama", "tokens": 0}}
    cuts = {"bands": asdict(Cut.into(16)), "digests": asdict(Cut.into(16))}
    if by == "ray":
        import ray

        environment = {"env_vars": {"PYTHONPATH": os.getcwd()}}
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    objects = StoreObjects(store, f"{PREFIX}{by}-{workers}-{os.getpid()}/", Path(scratch))
    with Pool(objects, "ray" if by == "ray" else workers) as pool:
        pool.map("warm", lsh.sign, [{"shard": shard, **rule, **cuts} for shard in shards[: 2 * workers]])
        before, started = store_seconds(), time.monotonic()
        results = pool.map("sign", lsh.sign, [{"shard": shard, **rule, **cuts} for shard in shards])
        wall = time.monotonic() - started
        spent = store_seconds() - before
    return {"wall": wall, "bytes": sum(result.value["bytes"] for result in results), "store": spent}


def store_seconds() -> float:
    """Processor seconds of the store's processes on this machine; 0 where it is elsewhere."""
    named = (p for p in psutil.process_iter(["name"]) if p.info["name"] == "weed")
    return sum(sum(process.cpu_times()[:2]) for process in named)


def rows(shards: list[dict[str, Any]], options: argparse.Namespace, scratch: Path) -> Iterator[str]:
    """A line of the table for each way and number of workers."""
    documents = sum(shard["rows"] for shard in shards)
    for by in options.by.split(","):
        first = 0.0
        for workers in map(int, options.workers.split(",")):
            runs: Sequence[dict[str, float]] = [child(shards, by, workers, scratch) for _ in range(options.repeat)]
            rates = sorted(documents / run["wall"] for run in runs)
            rate = statistics.median(rates)
            first = first or rate / workers
            size = statistics.median(run["bytes"] / run["wall"] for run in runs) / 1e6
            spent = statistics.median(run["store"] for run in runs)
            cells = [by, f"{workers}", f"{rate:,.0f}", f"{rates[0]:,.0f} to {rates[-1]:,.0f}", f"{size:.1f}"]
            cells += [f"{rate / workers / first:.2f}", f"{spent:.1f}"]
            yield "| " + " | ".join(cells) + " |"


def child(shards: list[dict[str, Any]], by: str, workers: int, scratch: Path) -> dict[str, float]:
    """One run, in a process of its own."""
    asked = json.dumps([shards, by, workers, str(scratch)])
    command = [sys.executable, "-m", "benchmarks.worker_rate", "--one"]
    done = subprocess.run(command, check=True, input=asked, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2", help="numbers, by commas")
    parser.add_argument("--by", default="processes,ray")
    parser.add_argument("--shards", type=int, default=64, help="of 8 MiB of text")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(os.environ["MOXIN_STORE"], *json.loads(sys.stdin.read()))))
        return
    settings = Settings.load()
    os.environ.update(settings.store_environment())
    os.environ["MOXIN_STORE"] = settings.store.model_dump_json()
    for line in machine():
        print(line)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "corpus").mkdir()
        shards = store_corpus(Store(settings.store), options.shards, scratch / "corpus")
        print(f"- {len(shards)} shards, {sum(shard['rows'] for shard in shards):,} documents\n\n{HEAD}")
        for row in rows(shards, options, scratch):
            print(row, flush=True)


if __name__ == "__main__":
    main()
