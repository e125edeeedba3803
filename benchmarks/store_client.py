"""CPU seconds a GiB of clients of the object store, with SHA-256 of all bytes, down to files and up from them.

    python -m benchmarks.store_client [--mib 256] [--repeat 3] [--sides moxin,..]

Needs `moxin up` (or a store of your own, as for any command). Each side is a process of its own, with four objects at
once; its processor time is taken after its imports and its client. Sides whose package is not installed (obstore) are
left out. The store is another process: its own time is not in the table, but bounds the rate where it shares the cores.
Files lie in memory (/dev/shm): a disk that others write to changed each side's time by up to 2 s/GiB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.core.artifacts import FileEntry
from stages.core.files import file_sha256
from stages.core.messages import StoreAddress
from stages.core.store import Store

OBJECTS, AT_ONCE, PART, CHUNK = 4, 4, 16 << 20, 1 << 20
PREFIX = "benchmarks/store-client/"
Work = Callable[[int], object]


def boto(address: StoreAddress) -> Any:
    """boto3's client as it is without settings of ours."""
    import boto3
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"}, max_pool_connections=64)
    return boto3.client("s3", endpoint_url=address.endpoint, region_name=address.region, config=config)


def where(address: StoreAddress, number: int) -> dict[str, str]:
    return {"Bucket": address.bucket, "Key": f"{address.prefix}{PREFIX}{number}"}


@dataclass
class Sides:
    """Ways to move objects; each method makes its client, and gives what moves object `number`."""

    address: StoreAddress
    entries: list[FileEntry]
    folder: Path

    def _target(self, number: int) -> Path:
        return self.folder / str(number)

    def _source(self, number: int) -> Path:
        """The file to send, read once for its SHA-256."""
        assert file_sha256(self.folder / "source") == self.entries[number].sha256
        return self.folder / "source"

    def _streamed(self, chunks: Callable[[int], Any]) -> Work:
        def work(number: int) -> None:
            digest = hashlib.sha256()
            with open(self._target(number), "wb", buffering=0) as stream:
                for chunk in chunks(number):
                    digest.update(chunk)
                    stream.write(chunk)
            assert digest.hexdigest() == self.entries[number].sha256

        return work

    def boto_download_file(self) -> Work:
        client = boto(self.address)

        def work(number: int) -> None:
            at = where(self.address, number)
            client.download_file(at["Bucket"], at["Key"], str(self._target(number)))
            assert file_sha256(self._target(number)) == self.entries[number].sha256

        return work

    def boto_stream(self) -> Work:
        client = boto(self.address)
        return self._streamed(lambda n: client.get_object(**where(self.address, n))["Body"].iter_chunks(CHUNK))

    def urllib3_stream(self) -> Work:
        import urllib3

        client, pool = boto(self.address), urllib3.PoolManager(maxsize=AT_ONCE)

        def chunks(number: int) -> Any:
            url = client.generate_presigned_url("get_object", Params=where(self.address, number))
            return pool.request("GET", url, preload_content=False).stream(CHUNK, decode_content=False)

        return self._streamed(chunks)

    def _obstore(self) -> tuple[Any, Any]:
        client = import_module("obstore.store").S3Store(
            self.address.bucket,
            endpoint=self.address.endpoint,
            region=self.address.region,
            client_options={"allow_http": True},
            virtual_hosted_style_request=False,
        )
        return import_module("obstore"), client

    def obstore_stream(self) -> Work:
        obstore, client = self._obstore()
        return self._streamed(lambda n: obstore.get(client, where(self.address, n)["Key"]).stream(min_chunk_size=CHUNK))

    def moxin_down(self) -> Work:
        store = Store(self.address)
        return lambda number: store.get_file(self.entries[number], self._target(number))

    def boto_upload_file(self) -> Work:
        client = boto(self.address)

        def work(number: int) -> None:
            at = where(self.address, number)
            client.upload_file(str(self._source(number)), at["Bucket"], at["Key"])

        return work

    def obstore_put(self) -> Work:
        obstore, client = self._obstore()
        options = {"chunk_size": PART, "max_concurrency": 4}
        return lambda n: obstore.put(client, where(self.address, n)["Key"], self._source(n), **options)

    def moxin_up(self) -> Work:
        store = Store(self.address)

        def work(number: int) -> None:
            entry = store.put_file(f"{PREFIX}{number}", self.folder / "source")
            assert entry.sha256 == self.entries[number].sha256

        return work


SIDES = {
    "down: boto3 download_file, SHA-256 after": Sides.boto_download_file,
    "down: boto3 get_object, SHA-256 beside": Sides.boto_stream,
    "down: urllib3 on a presigned address, SHA-256 beside": Sides.urllib3_stream,
    "down: obstore stream, SHA-256 beside": Sides.obstore_stream,
    "down: moxin (Store.get_file)": Sides.moxin_down,
    "up: boto3 upload_file, SHA-256 before": Sides.boto_upload_file,
    "up: obstore put, SHA-256 before, no CRC32": Sides.obstore_put,
    "up: moxin (Store.put_file), CRC32 of each block too": Sides.moxin_up,
}


def measure(address: StoreAddress, name: str, mib: int, folder: Path) -> dict[str, float]:
    """One side, in this process: CPU and wall seconds a GiB."""
    entries = [FileEntry.model_validate(row) for row in json.loads((folder / "entries").read_text())]
    work = SIDES[name](Sides(address, entries, folder))
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(work, range(OBJECTS)))
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu * 1024 / mib, "wall": wall * 1024 / mib}


def prepare(address: StoreAddress, mib: int, folder: Path) -> list[str]:
    """The objects, and the names of all sides that can run here."""
    (folder / "source").write_bytes(os.urandom((mib << 20) // OBJECTS))
    entries = [Store(address).put_file(f"{PREFIX}{number}", folder / "source") for number in range(OBJECTS)]
    (folder / "entries").write_text(json.dumps([entry.value() for entry in entries]))
    return [name for name in SIDES if "obstore" not in name or find_spec("obstore")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=256, help="of all objects together")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sides", default="", help="only sides whose name has one of these words, by commas")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    address = StoreAddress.model_validate_json(os.environ["MOXIN_STORE"]) if options.one else _configured()
    if options.one:
        print(json.dumps(measure(address, options.one[0], options.mib, Path(options.one[1]))))
        return
    os.environ["MOXIN_STORE"] = address.model_dump_json()
    words = [word for word in options.sides.split(",") if word]
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        print("| side | CPU s/GiB | range | wall s/GiB |\n| --- | ---: | --- | ---: |")
        for side in prepare(address, options.mib, Path(name)):
            if words and not any(word in side for word in words):
                continue
            command = [sys.executable, "-m", "benchmarks.store_client", "--mib", str(options.mib), "--one", side, name]
            rows = [json.loads(subprocess.check_output(command, text=True)) for _ in range(options.repeat)]
            cpu, wall = ([row[key] for row in rows] for key in ("cpu", "wall"))
            shown = f"{statistics.median(cpu):.2f} | {min(cpu):.2f} to {max(cpu):.2f} | {statistics.median(wall):.1f}"
            print(f"| {side} | {shown} |", flush=True)
    Store(address).delete(f"{PREFIX}{number}" for number in range(OBJECTS))


def _configured() -> StoreAddress:
    """The store that the settings name; its credentials go into the environment."""
    from flows.settings import Settings

    settings = Settings.load()
    os.environ.update(settings.store_environment())
    return settings.store


if __name__ == "__main__":
    main()
