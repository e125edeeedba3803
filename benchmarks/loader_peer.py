"""One side of `benchmarks.loader_peers`: MosaicML Streaming or litdata. Runs in an environment of its own, and imports
nothing of this repository.

python -P benchmarks/loader_peer.py write KIND IDS.npy FOLDER
python -P benchmarks/loader_peer.py read KIND '{"bucket", "prefix", "cache", "batch", "steps", "state", "length"}'

`write` prints the package's version. `read` takes batches as fast as they come, from where `state` says if there is
one, and prints what that took. -P: this folder has a `streaming` of its own.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import types
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

SHARD_BYTES = 64 << 20
PACKAGES = {"streaming": "mosaicml-streaming", "litdata": "litdata"}


def peak_mib() -> float:
    """The most memory that this process has had, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def write(kind: str, ids: np.ndarray, folder: str) -> None:
    """The windows in the package's own format, uncompressed, with its own sums where it has some by default."""
    if kind == "streaming":
        from streaming import MDSWriter

        columns = {"ids": f"ndarray:{ids.dtype}:{ids.shape[1]}"}
        with MDSWriter(out=folder, columns=columns, size_limit=SHARD_BYTES) as writer:
            for row in ids:
                writer.write({"ids": row})
        return
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    chunks = BinaryWriter(folder, chunk_bytes=SHARD_BYTES, item_loader=TokensLoader(block_size=ids.shape[1]))
    for number, row in enumerate(ids):
        chunks.add_item(number, row)
    chunks.done()
    chunks.merge()


def dataset(kind: str, given: dict[str, Any]) -> Any:
    """The shuffled data set, read from the store, with the package's own settings but for the size of a batch."""
    remote = f"s3://{given['bucket']}/{given['prefix']}"
    if kind == "streaming":
        from streaming import StreamingDataset

        return StreamingDataset(remote=remote, local=given["cache"], shuffle=True, batch_size=given["batch"])
    from litdata import StreamingDataset
    from litdata.streaming import downloader
    from litdata.streaming.item_loader import TokensLoader

    downloader._OBSTORE_CLIENT_OPTIONS = {**downloader._OBSTORE_CLIENT_OPTIONS, "allow_http": True}
    return StreamingDataset(
        input_dir=remote,
        cache_dir=given["cache"],
        item_loader=TokensLoader(block_size=given["length"]),
        shuffle=True,
        storage_options={"endpoint_url": os.environ["S3_ENDPOINT_URL"]},
    )


def loader(kind: str, data: Any, batch: int) -> Any:
    """The package's own loader, in this process as ours is: it has threads, and no workers."""
    if kind == "streaming":
        from streaming import StreamingDataLoader

        return StreamingDataLoader(data, batch_size=batch, num_workers=0)
    from litdata import StreamingDataLoader

    return StreamingDataLoader(data, batch_size=batch, num_workers=0)


def batches(kind: str, source: Any) -> Iterator[np.ndarray]:
    """Arrays of ids."""
    for one in source:
        yield np.asarray(one["ids"] if kind == "streaming" else one)


def read(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the batches took."""
    before, started, used = peak_mib(), time.perf_counter(), time.process_time()
    source = loader(kind, dataset(kind, given), given["batch"])
    if given["state"]:
        source.load_state_dict(given["state"])
    each = batches(kind, source)
    digest = hashlib.sha256(next(each).astype(np.uint16).tobytes()).hexdigest()
    first, first_cpu = time.perf_counter() - started, time.process_time() - used
    started, used, digests = time.perf_counter(), time.process_time(), [digest]
    state: Any = None
    for number in range(1, given["steps"]):
        array = next(each)
        if number == given["steps"] // 2:
            state = source.state_dict()
        if number == given["steps"] // 2 + 1:
            digests.append(hashlib.sha256(array.astype(np.uint16).tobytes()).hexdigest())
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    return {
        "imported_mib": before,
        "first_s": first,
        "first_cpu_s": first_cpu,
        "seconds": seconds,
        "cpu_s": cpu,
        "steps": given["steps"] - 1,
        "peak_mib": peak_mib(),
        "disk_bytes": sum(p.stat().st_size for p in Path(given["cache"]).rglob("*") if p.is_file()),
        "digests": digests,
        "state": state,
    }


def without_torchvision() -> None:
    """Streaming asks for it for its data sets of images alone; PyPI's, uninstalled, does not load beside PyTorch's
    CPU build.
    """
    import transformers.feature_extraction_utils  # noqa: F401 - looks whether there is one

    for name, attribute in (
        ("datasets", "VisionDataset"),
        ("transforms", "none"),
        ("transforms.functional", "to_tensor"),
    ):
        module: Any = types.ModuleType(f"torchvision.{name}")
        setattr(module, attribute, object)
        sys.modules[module.__name__] = module
    sys.modules["torchvision"] = types.ModuleType("torchvision")


if __name__ == "__main__":
    without_torchvision()
    what, kind, *rest = sys.argv[1:]
    if what == "write":
        write(kind, np.load(rest[0]), rest[1])
        print(json.dumps({"version": version(PACKAGES[kind])}))
    else:
        import torch  # noqa: F401

        __import__(kind)  # what an import takes is no part of what is measured
        print(json.dumps(read(kind, json.loads(rest[0]))))
        sys.stdout.flush()
        os._exit(0)
