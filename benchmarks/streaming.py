"""tokenize's shuffle of an artifact that lies nowhere: through a store on loopback that makes its bytes when asked.

    python -m benchmarks.streaming [--gigabytes 8] [--workers 2] [--kill 600,1800]

Prints the rate, the memory of the largest process, and the most that lay on the local disk when an object was complete.
With `--gigabytes 300` it is the size that issue 16 names; the store makes and checks every byte in this process, so it
takes a share of the machine that a real one would not. --kill: seconds after which all processes of the stage are
killed, and others go on; rate and requests then are of everything, CPU seconds and memory of the last ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generated_store import GeneratedStore, serving
from benchmarks.memory import peak_kib
from stages.core import reading
from stages.core.artifacts import FileEntry
from stages.core.messages import StoreAddress
from stages.core.store import Store
from stages.core.task_objects import StoreObjects
from stages.lib.data.workers import Pool
from stages.tokenize import packing
from stages.tokenize.packing import Windows
from stages.tokenize.streams import Encoded, Stream

LENGTH, SEED = 2000, 1


def drive(address: str, files: list[Mapping[str, Any]], scratch: str, workers: int, sizes: Mapping[str, int]) -> None:
    """Shuffle what some entries name; prints the shards as JSON, the peak memory of the largest process in KiB, and the
    CPU seconds of all.

    sizes: of the packing's constants, for runs in small.
    """
    for name, value in sizes.items():
        setattr(packing, name, value)
    store = Store(StoreAddress.model_validate_json(address))
    reading.share(store.address, "benchmark")
    entries = [FileEntry.model_validate(value) for value in files]
    stream = Stream([Encoded(e, e.size // 2) for e in entries], sum(e.size for e in entries) // 2)
    with Pool(StoreObjects(store, "work/tokenize/benchmark/", Path(scratch)), workers) as pool:
        shards = packing.shuffle(pool, "train", [stream], Windows(LENGTH, "uint16", 1 << 16, SEED))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    peak = max(peak_kib(), used[1].ru_maxrss if workers > 1 else 0)  # ru_maxrss is also that of who started a process
    print(json.dumps({"shards": [entry.object for entry, _ in shards], "peak": peak, "cpu": cpu}))


def command(store: GeneratedStore, scratch: Path, workers: int, **sizes: int) -> tuple[list[str], dict[str, Any]]:
    """How `drive` is started in a process of its own: the arguments of `subprocess.Popen`. What it is to do lies in a
    file beside its scratch folder.
    """
    given = [store.address.model_dump_json(), [e.value() for e in store.files()], str(scratch), workers, sizes]
    request = scratch.with_name(f"{scratch.name}.json")
    request.write_text(json.dumps(given), encoding="utf-8")
    environment = os.environ | {"AWS_ACCESS_KEY_ID": "generated", "AWS_SECRET_ACCESS_KEY": "generated"}
    root = Path(__file__).parents[1]
    options = {"env": environment, "cwd": root, "stdout": subprocess.PIPE, "text": True}
    return [sys.executable, "-m", "benchmarks.streaming", "--drive", str(request)], options


def on_disk(folder: Path) -> int:
    """Bytes of the files of a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # it has just left
                continue
    return total


def complete(store: GeneratedStore, shards: list[str]) -> bool:
    """Whether some shards hold every window once, whole, in the order of the keys."""
    numbers = np.concatenate([store.numbers[key] for key in shards])
    keys = packing.keys_of(numbers, SEED)
    once = bool((np.bincount(numbers, minlength=store.count) == 1).all())
    return not store.broken and once and bool((keys[:-1] < keys[1:]).all())


def driven(
    arguments: list[str], how: Mapping[str, Any], scratch: Path, kills: list[float], look: Callable[[], None]
) -> str:
    """What `drive` prints at last, once it was killed at some points of the monotonic clock and begun again. What those
    that were killed left in scratch goes before, as `stages.core.workspace.sweep` removes it.
    """
    printed = scratch.with_name("printed")  # no pipe: nobody reads it meanwhile, and it holds 64 kB
    while True:
        shutil.rmtree(scratch, ignore_errors=True)
        with open(printed, "wb") as stream:
            running = subprocess.Popen(arguments, start_new_session=True, **{**how, "stdout": stream})
        try:
            while running.poll() is None and not (kills and time.monotonic() >= kills[0]):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.wait(10)
                look()
            if running.poll() is not None:
                break
            kills.pop(0)
            print("killed", file=sys.stderr)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    if running.returncode:
        raise SystemExit(f"the stage ended with {running.returncode}")
    return printed.read_text(encoding="utf-8")


def say(store: GeneratedStore, began: float) -> None:
    """How far it is, in a line that the next one replaces."""
    moved = (store.bytes_in + store.bytes_out) / 1e9
    print(
        f"\r{time.monotonic() - began:,.0f} s, {moved:,.1f} GB moved, {len(store.numbers):,} objects",
        end="",
        file=sys.stderr,
    )


def main() -> None:
    """Measure, and print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", default="", help="seconds, by commas")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(*json.loads(Path(options.drive).read_text(encoding="utf-8")))
        return
    windows = int(options.gigabytes * 1e9) // (2 * LENGTH)
    most = 0
    with tempfile.TemporaryDirectory() as folder, serving(GeneratedStore(windows, LENGTH, SEED)) as store:
        scratch = Path(folder) / "scratch"

        def look(key: str) -> None:
            nonlocal most
            most = max(most, on_disk(scratch))

        store.stored = look
        arguments, how = command(store, scratch, options.workers)
        began = time.monotonic()
        kills = [began + float(second) for second in options.kill.split(",") if second]
        outcome = json.loads(driven(arguments, how, scratch, kills, lambda: say(store, began)))
        took = time.monotonic() - began
        assert complete(store, outcome["shards"])
    size = windows * 2 * LENGTH
    row = [
        f"{size / 1e9:.1f} GB",
        f"{options.workers} workers",
        f"{len(outcome['shards'])} shards",
        f"{took:.0f} s",
        f"{size / 1e6 / took:.0f} MB/s",
        f"{outcome['cpu'] / size * 1e9:.1f} CPU s a GB",
        f"{outcome['peak'] / 1024:.0f} MiB",
        f"{most / 1e9:.2f} GB on disk",
        f"{(store.bytes_in + store.bytes_out) / 1e9:.1f} GB moved",
        f"{store.requests} requests",
        f"load {os.getloadavg()[0]:.1f}",
    ]
    print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
