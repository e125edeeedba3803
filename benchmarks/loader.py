"""The loader of `pretrain` at the size of `7b`: 750 million windows in 11,445 shards, 64 ranks one after the other.

    python -m benchmarks.loader        # with 1,024 open files at most

A store on loopback, in a process of its thread, makes the bytes of a shard when they are asked for (`generated_store`).
A rank is a fork of a process that has imported everything; it lists the shards, opens them, and takes steps through
the code that trains (`stages.pretrain.data`). Processor time is its thread, not the store's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.generated_store import GeneratedStore, serving
from stages.core.artifacts import ArtifactManifest, FileEntry, IndexRef, TokenShards
from stages.core.context import LocalArtifact
from stages.core.index import read_index, write_index
from stages.core.messages import StoreAddress
from stages.core.reading import share
from stages.core.store import Store
from stages.core.testing import LocalContext
from stages.lib.formats.shards import INDEX, VERSION, row_type, shard_name, stored_rows
from stages.lib.training.parallel_dims import ParallelDims
from stages.pretrain.data import open_windows
from stages.pretrain.spec import PretrainConfig

WINDOWS, SHARDS, LENGTH, RANKS, BATCH = 750_000_000, 11_445, 2000, 64, 512
RANK_EATS = 1e6 / RANKS
"""Bytes a second: 1 MB over all ranks."""
FILES = 1024
MIB = 1 << 20


class ShardStore(GeneratedStore):
    """A store whose shards of windows are made when they are asked for."""

    def __init__(self, windows: int, shards: int, length: int) -> None:
        self.rows = [end - start for start, end in zip(*_cuts(windows, shards), strict=True)]
        self.starts = _cuts(windows, shards)[0]
        self.row = row_type(length, "uint16")
        super().__init__(windows, length, 0)

    def size(self, key: str) -> int | None:
        if key.startswith("tokens/shard"):
            return self.rows[int(key[13:18])] * self.row.itemsize
        return super().size(key)

    def read(self, key: str, start: int, end: int) -> bytes:
        if not key.startswith("tokens/shard"):
            return super().read(key, start, end)
        first, last = start // self.row.itemsize, -(-end // self.row.itemsize)
        begins = self.starts[int(key[13:18])]
        data = stored_rows(self.windows(np.arange(begins + first, begins + last))).tobytes()
        return data[start - first * self.row.itemsize : end - first * self.row.itemsize]

    def index(self) -> IndexRef:
        """Write what `tokenize` would have: its index.json, and the index of the artifact."""
        store = Store(self.address)
        index = {"version": VERSION, "dtype": "uint16", "sequence_length": self.kind.length, "vocab_size": 1 << 16}
        text = json.dumps({**index, "eos_id": 2, "tokenizer_digest": "0" * 64, "rows": self.rows}).encode()
        store.put(f"tokens/{INDEX}", text)
        entries = [FileEntry(path=INDEX, size=len(text), sha256="0" * 64, object=f"tokens/{INDEX}")]
        for number, rows in enumerate(self.rows):
            name = shard_name(number)
            size = rows * self.row.itemsize
            entries.append(FileEntry(path=name, size=size, sha256=f"{number:064x}", object=f"tokens/{name}"))
        return write_index(store, "tokens/.index", entries)


def _cuts(windows: int, shards: int) -> tuple[list[int], list[int]]:
    edges = [windows * n // shards for n in range(shards + 1)]
    return edges[:-1], edges[1:]


def serve(ready: Any, windows: int, shards: int, length: int) -> None:
    """The store's process."""
    store = ShardStore(windows, shards, length)
    with serving(store):
        ready.send((store.address.model_dump_json(), store.index().model_dump_json()))
        ready.recv()


class Served:
    """The store, while a benchmark runs."""

    def __init__(self, windows: int, shards: int, length: int) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        arguments = (theirs, windows, shards, length)
        self.process = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        address, root = self.pipe.recv()
        self.address, self.root = StoreAddress.model_validate_json(address), IndexRef.model_validate_json(root)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.pipe.send(None)
        self.process.join(10)
        self.process.kill()


def peak_mib() -> float:
    """The most memory that this process has had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def forked(act: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What something measures in a process of its own."""
    here, there = os.pipe()
    if not (child := os.fork()):
        status = 1
        try:
            Path("/proc/self/clear_refs").write_text("5")  # its peak begins anew
            os.write(there, json.dumps(act()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(there)
    with open(here, "rb") as answer:
        data = answer.read()
    if os.waitpid(child, 0)[1] or not data:
        raise SystemExit("a rank failed: see above")
    return json.loads(data)


def rank(number: int, ranks: int, batch: int, address: StoreAddress, root: IndexRef, first: int, steps: int) -> Any:
    """One rank: opens the shards, and takes steps as fast as it can."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    before, started, used = peak_mib(), time.perf_counter(), time.process_time()
    share(address, "benchmark")
    files = tuple(read_index(Store(address), root))
    manifest = ArtifactManifest.model_construct(type=TokenShards.__name__, digest="0" * 64, files=files)
    artifact = LocalArtifact(None, manifest, "tokenize")
    config = PretrainConfig(tokens=(first + steps + 600) * batch * LENGTH, global_batch_size=batch, warmup_steps=0)
    with tempfile.TemporaryDirectory() as folder:
        ctx = LocalContext(Path(folder), config, {"tokens": [artifact]})
        data = open_windows(ctx, ParallelDims(torch.device("cpu"), number, ranks))
        opened, opened_cpu, opened_mib = time.perf_counter() - started, time.process_time() - used, peak_mib()
        data.micro_batches(first)
        begun = time.perf_counter() - started
        used, thread, started, descriptors = time.process_time(), time.thread_time(), time.perf_counter(), 0
        for step in range(first + 1, first + 1 + steps):
            data.micro_batches(step)
            if step % 50 == 0:
                descriptors = max(descriptors, len(os.listdir("/proc/self/fd")))
        seconds, cpu, thread = time.perf_counter() - started, time.process_time() - used, time.thread_time() - thread
        data.close()
    size = steps * batch // ranks * LENGTH * 2
    return {
        "opened_s": opened,
        "opened_cpu_s": opened_cpu,
        "first_s": begun,
        "imported_mib": before,
        "opened_mib": opened_mib,
        "peak_mib": peak_mib(),
        "own_ms": thread / steps * 1e3,
        "ahead_ms": (cpu - thread) / steps * 1e3,
        "bytes_s": size / seconds,
        "bytes_cpu_s": size / cpu,
        "descriptors": descriptors,
    }


def table(rows: list[dict[str, float]]) -> list[str]:
    """What was measured against the aims, the worst rank of each."""
    aims = [
        ("opening a rank, s (wall)", "opened_s", max, 2.0),
        ("opening a rank, CPU s", "opened_cpu_s", max, 2.0),
        ("peak memory after opening, MiB, imports included", "opened_mib", max, 300.0),
        ("first batch, s after the start (wall)", "first_s", max, None),
        ("peak memory, MiB, imports included", "peak_mib", max, None),
        ("of it after the imports, MiB", "imported_mib", max, None),
        ("a step's windows, CPU ms of the training's thread", "own_ms", max, 1.0),
        ("a step's windows, CPU ms of the threads ahead", "ahead_ms", max, None),
        ("loader over what a rank eats (wall)", "times", min, 100.0),
        ("loader over what a rank eats (CPU)", "times_cpu", min, 100.0),
        ("open files", "descriptors", max, float(FILES)),
    ]
    for row in rows:
        row["times"], row["times_cpu"] = row["bytes_s"] / RANK_EATS, row["bytes_cpu_s"] / RANK_EATS
    lines = ["| what | worst | median | aim | |", "| --- | ---: | ---: | ---: | --- |"]
    for what, name, worst, aim in aims:
        values = [row[name] for row in rows]
        value = worst(values)
        met = "" if aim is None else "met" if (value <= aim if worst is max else value >= aim) else "missed"
        lines.append(
            f"| {what} | {value:.4g} | {np.median(values):.4g} | {'' if aim is None else f'{aim:g}'} | {met} |"
        )
    return lines


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ranks", type=int, default=RANKS, help="how many of the 64 are tried")
    parser.add_argument("--steps", type=int, default=256, help="steps of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Served(WINDOWS, SHARDS, LENGTH) as store:
        rows = []
        for number in range(options.ranks):
            first = 100_003 * number  # anywhere in the run, as after a resume
            rows.append(
                forked(lambda n=number, f=first: rank(n, RANKS, BATCH, store.address, store.root, f, options.steps))
            )
            print(json.dumps(rows[-1]), file=sys.stderr)
    print(f"{WINDOWS:,} windows, {SHARDS:,} shards, {options.ranks} of {RANKS} ranks, {options.steps} steps of each")
    print(*table(rows), sep="\n")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "none")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "none")
    sys.exit(main())
