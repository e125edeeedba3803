"""The loader of `pretrain` beside MosaicML Streaming and litdata: the same windows, the same store, one process each.

    python -m benchmarks.loader_peers --peers PEERS/bin/python        # an environment with benchmarks/loader-peers.txt

Each package has the windows in its own format, in files of 64 MiB, uncompressed, and reads them shuffled with its own
settings but for the size of a batch, without workers. The store is a process of its own, on loopback, with everything
in memory. A second process takes each run up where the first one's state at its half says, with an empty disk, as on
another machine; whether it is given the same windows as an unbroken run is looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.generated_store import BUCKET, GeneratedStore, serving
from benchmarks.loader import forked, peak_mib
from benchmarks.loader_peer import PACKAGES, SHARD_BYTES
from stages.core.artifacts import ArtifactManifest, FileEntry, TokenShards
from stages.core.context import LocalArtifact
from stages.core.messages import StoreAddress
from stages.core.reading import share
from stages.core.testing import LocalContext
from stages.lib.formats.shards import ShardWriter, row_type
from stages.lib.training.parallel_dims import ParallelDims
from stages.pretrain.data import open_windows
from stages.pretrain.spec import PretrainConfig

LENGTH, BATCH = 2000, 16
OURS = "moxin"


def serve(pipe: Any, folder: str) -> None:
    """The store's process: a folder's files, and how many requests and bytes were asked for."""
    store = GeneratedStore(0, LENGTH, 0)
    root = Path(folder)
    store.objects = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    with serving(store):
        pipe.send(store.address.model_dump_json())
        while pipe.recv():
            pipe.send((store.requests, store.bytes_out))


class Served:
    """The store, while a benchmark runs."""

    def __init__(self, folder: Path) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(theirs, str(folder)), daemon=True)
        self._process.start()
        self.address = StoreAddress.model_validate_json(self._pipe.recv())

    def counts(self) -> np.ndarray:
        """Requests and bytes so far."""
        self._pipe.send(True)
        return np.array(self._pipe.recv(), np.int64)

    def close(self) -> None:
        """End it."""
        self._pipe.send(False)
        self._process.join(10)
        self._process.kill()


def write(ids: np.ndarray, folder: Path) -> list[dict[str, Any]]:
    """Our shards of these windows; their files."""
    folder.mkdir()
    rows = SHARD_BYTES // row_type(LENGTH, ids.dtype).itemsize
    with ShardWriter(folder, LENGTH, 1 << 16, 2, "0" * 64, rows) as writer:
        writer.add(ids)
    return [
        {
            "path": path.name,
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "object": f"{OURS}/{path.name}",
        }
        for path in sorted(folder.iterdir())
    ]


def read(address: StoreAddress, files: list[dict[str, Any]], steps: int, state: int | None) -> Any:
    """Our side of `loader_peer.read`. state: the step to go on from."""
    before, started, used = peak_mib(), time.perf_counter(), time.process_time()
    share(address, "benchmark")
    entries = tuple(FileEntry(**file) for file in files)
    manifest = ArtifactManifest.model_construct(type=TokenShards.__name__, digest="0" * 64, files=entries)
    config = PretrainConfig(tokens=4 * steps * BATCH * LENGTH, global_batch_size=BATCH, warmup_steps=0)
    config = config.model_copy(update={"micro_batch_size": BATCH, "document_mask": False})
    begin, digests = state or 0, []
    with tempfile.TemporaryDirectory() as folder:
        ctx = LocalContext(Path(folder), config, {"tokens": [LocalArtifact(None, manifest, "tokenize")]})
        data = open_windows(ctx, ParallelDims(torch.device("cpu"), 0, 1))
        digests.append(_digest(data.micro_batches(begin)[0].ids))
        first, first_cpu = time.perf_counter() - started, time.process_time() - used
        started, used = time.perf_counter(), time.process_time()
        for step in range(1, steps):
            batch = data.micro_batches(begin + step)[0]
            if step == steps // 2 + 1:
                digests.append(_digest(batch.ids))
        seconds, cpu = time.perf_counter() - started, time.process_time() - used
        data.close()
    return {
        "imported_mib": before,
        "first_s": first,
        "first_cpu_s": first_cpu,
        "seconds": seconds,
        "cpu_s": cpu,
        "steps": steps - 1,
        "peak_mib": peak_mib(),
        "disk_bytes": 0,
        "digests": digests,
        "state": begin + steps // 2 + 1,
    }


def _digest(ids: torch.Tensor) -> str:
    return hashlib.sha256(ids.numpy().astype(np.uint16).tobytes()).hexdigest()


def peer(python: str, address: StoreAddress, kind: str, steps: int, state: Any, cache: Path) -> Any:
    """A peer's side, in a process of its own, with an empty disk. Its folder's name is always the same: litdata's state
    is of one folder.
    """
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    given = {"bucket": BUCKET, "prefix": kind, "cache": str(cache), "batch": BATCH, "steps": steps}
    given |= {"state": state, "length": LENGTH}
    command = [python, "-P", str(Path(__file__).with_name("loader_peer.py")), "read", kind, json.dumps(given)]
    env = {**os.environ, "S3_ENDPOINT_URL": str(address.endpoint), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return json.loads(printed.splitlines()[-1])


def table(names: dict[str, str], runs: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """What was measured, a package a column."""
    eaten = BATCH * LENGTH
    rows: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], float | str]]] = [
        ("after the first batch, CPU ms a million tokens", lambda a, b: 1e9 * a["cpu_s"] / (a["steps"] * eaten)),
        ("after it, million tokens a second, by the clock", lambda a, b: a["steps"] * eaten / a["seconds"] / 1e6),
        ("all, first batch too, CPU s", lambda a, b: a["first_cpu_s"] + a["cpu_s"]),
        ("first batch, CPU s", lambda a, b: a["first_cpu_s"]),
        ("first batch, s by the clock", lambda a, b: a["first_s"]),
        ("bytes from the store for one that is eaten", lambda a, b: a["bytes"] / ((a["steps"] + 1) * eaten * 2)),
        ("peak memory beyond the imports, mapped files too, MiB", lambda a, b: a["peak_mib"] - a["imported_mib"]),
        ("on disk at the end, MB", lambda a, b: a["disk_bytes"] / 1e6),
        ("two batches after a resume, MB from the store", lambda a, b: b["bytes"] / 1e6),
        ("first batch after a resume, CPU s", lambda a, b: b["first_cpu_s"]),
        ("first batch after a resume, s by the clock", lambda a, b: b["first_s"]),
        ("its windows are an unbroken run's", lambda a, b: "yes" if a["digests"][1] == b["digests"][0] else "NO"),
    ]
    lines = ["| what | " + " | ".join(names.values()) + " |", "| --- |" + " ---: |" * len(names)]
    for what, of in rows:
        values = [of(*runs[name]) for name in names]
        lines.append(f"| {what} | " + " | ".join(v if isinstance(v, str) else f"{v:.3g}" for v in values) + " |")
    return lines


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", required=True, help="Python of an environment with loader-peers.txt")
    parser.add_argument("--windows", type=int, default=1 << 16)
    parser.add_argument("--steps", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ids = np.random.default_rng(0).integers(3, 1 << 16, (options.windows, LENGTH), np.uint16)
    names, runs = {OURS: f"here, torch {version('torch')}"}, {}
    with tempfile.TemporaryDirectory() as name:
        folder, script = Path(name), str(Path(__file__).with_name("loader_peer.py"))
        np.save(folder / "ids.npy", ids)
        (folder / "store").mkdir()
        files = write(ids, folder / "store" / OURS)
        for kind, package in PACKAGES.items():
            command = [
                options.peers,
                "-P",
                script,
                "write",
                kind,
                str(folder / "ids.npy"),
                str(folder / "store" / kind),
            ]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            names[kind] = f"{package} {json.loads(printed.splitlines()[-1])['version']}"
        store = Served(folder / "store")
        try:
            for kind in names:

                def side(steps: int, state: Any, kind: str = kind) -> Any:
                    before = store.counts()
                    if kind == OURS:
                        row: Any = forked(lambda: read(store.address, files, steps, state))
                    else:
                        row = peer(options.peers, store.address, kind, steps, state, folder / "cache")
                    return row | dict(zip(("requests", "bytes"), (store.counts() - before).tolist(), strict=True))

                whole = side(options.steps, None)
                resumed = side(2, whole["state"])
                runs[kind] = whole, resumed
                print(json.dumps(whole), json.dumps(resumed), sep="\n", file=sys.stderr)
        finally:
            store.close()
    print(f"{options.windows:,} windows of {LENGTH:,} ids, {options.steps} batches of {BATCH}\n")
    print(*table(names, runs), sep="\n")
    return 0


if __name__ == "__main__":
    os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1"}
    sys.exit(main())
