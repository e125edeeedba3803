"""The object store: S3 through boto3. Conditional writes, checksummed streaming transfers, errors in one clear line.

A store that cannot be reached or answers 5xx, 408 or 429 is asked again with growing pauses, for `patience` seconds; a
download that breaks goes on where it broke. Credentials come from the standard AWS environment or files; nothing here
holds or prints them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError, IncompleteReadError

from stages.core.disk import disk_full, nearly_full, no_space
from stages.core.errors import ConfigError, InfraError
from stages.core.files import file_sha256, replacing
from stages.core.messages import StoreAddress
from stages.core.store_errors import Conflict, Damaged, Unavailable, client_errors, object_name

T = TypeVar("T")
R = TypeVar("R")

PART_BYTES = 16 << 20
"""Part size of multipart transfers: 16 MiB x 8 threads measured fastest on one host (docs/measurements.md)."""
THREADS = 8
_TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=THREADS)
PATIENCE = 120.0
"""Seconds for which a store that fails is asked again, from the first failure on: it is being restarted, or has too
much to do. MOXIN_STORE_PATIENCE overrides it.
"""
PAUSES = (0.5, 15.0)
"""Seconds before the store is asked again: the first pause and the longest; each is up to twice the one before."""
STORE_FOLDER = "MOXIN_STORE_FOLDER"
"""Where the store that runs on this machine keeps its data: its own answer to a full disk is an HTTP 500 that does not
say so.
"""


@dataclass(frozen=True)
class Stored:
    """One object in a listing."""

    key: str
    size: int
    etag: str
    written: float = 0.0
    """When, in seconds since the epoch, by the store's clock (`Store.now`)."""


def _patience() -> float:
    given = os.environ.get("MOXIN_STORE_PATIENCE")
    try:
        return float(given) if given else PATIENCE
    except ValueError:
        raise ConfigError(f"MOXIN_STORE_PATIENCE = {given!r}: set it to seconds, such as 120") from None


class Store:
    """One bucket (and prefix) of an S3 store. Thread-safe.

    patience: seconds for which a store that fails is asked again. tell: gets a line when that takes a while.
    """

    def __init__(self, address: StoreAddress, client: Any = None, patience: float | None = None) -> None:
        self.address = address
        self.patience = _patience() if patience is None else patience
        self.tell: Callable[[str], None] = logging.getLogger(__name__).warning
        self.interrupted = threading.Event()
        """Set while transfers in other threads are to end: whoever waits for them has been stopped."""
        self._clock_offset: float | None = None
        self._client = client or boto3.Session().client(  # the default session keeps the first credentials that it saw
            "s3",
            endpoint_url=address.endpoint,
            region_name=address.region,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 4, "mode": "standard"},
                connect_timeout=5,
                read_timeout=60,
                max_pool_connections=THREADS * THREADS + 8,  # files at once, and ranges of each
            ),
        )

    def __repr__(self) -> str:
        return f"Store({self.where('')})"

    def where(self, key: str) -> str:
        """The object's full name, for messages."""
        return object_name(self.address, key)

    def _full(self, key: str) -> str:
        return self.address.prefix + key

    def _patiently(self, key: str, act: Callable[[], T], reached: Callable[[], int] | None = None) -> T:
        """Do something with the store; again, after growing pauses, while it is unavailable and patience lasts.

        reached: bytes that the last try has surely moved. A transfer may take longer than patience lasts: one that got
        further than ever before has met a new outage, not the old one.
        """
        pause, since, furthest = PAUSES[0], 0.0, 0
        while True:
            try:
                with client_errors(self.address, key):
                    return act()
            except Unavailable as error:
                if reached is not None and reached() > furthest:
                    pause, since, furthest = PAUSES[0], 0.0, reached()
                since = since or time.monotonic()
                left = since + self.patience - time.monotonic()
                if (full := self._full_disk(error)) is not None:
                    raise full from error
                if left <= 0:
                    raise
                if pause > 4 * PAUSES[0]:
                    self.tell(f"{error}; asking again, for {left:.0f} s more")
                if self.interrupted.wait(
                    min(left, pause * random.uniform(0.5, 1.0))
                ):  # many clients must not come back at once
                    raise
                pause = min(2 * pause, PAUSES[1])

    def _full_disk(self, error: Unavailable) -> InfraError | None:
        folder = os.environ.get(STORE_FOLDER)
        return InfraError(f"{error}. {no_space(folder)}") if folder and nearly_full(folder) else None

    # --- small objects ----------------------------------------------------------------------------------------

    def get(self, key: str) -> tuple[bytes, str] | None:
        """An object's bytes and ETag, or None if there is none."""
        found = self.get_with_age(key)
        return None if found is None else found[:2]

    def get_with_age(self, key: str) -> tuple[bytes, str, float] | None:
        """An object's bytes, its ETag, and how many seconds ago it was written, all by the store's own clock (to a
        second or two): by the answer's Date, or where a store or proxy sends none, by an object written just now.
        """

        def ask() -> tuple[bytes, str, float] | None:
            try:
                answer = self._client.get_object(Bucket=self.address.bucket, Key=self._full(key))
            except ClientError as error:
                if (
                    error.response["ResponseMetadata"].get("HTTPStatusCode") == 404
                    and error.response["Error"].get("Code") != "NoSuchBucket"
                ):
                    return None
                raise
            date, written = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date"), answer.get("LastModified")
            if written is None:
                age = 0.0
            elif date:
                age = (parsedate_to_datetime(date) - written).total_seconds()
            else:
                age = self._clock() - written.timestamp()
            return answer["Body"].read(), answer.get("ETag", ""), age

        return self._patiently(key, ask)

    def now(self) -> float:
        """The store's time, in seconds since the epoch, to a second or two: what ages of objects are told by."""
        return self._patiently("probe/", self._clock)

    def _clock(self) -> float:
        """The store's time now, in seconds since the epoch: asked once, then carried on by this machine's clock."""
        offset = self._clock_offset
        if offset is None:
            where = {"Bucket": self.address.bucket, "Key": self._full(f"probe/{uuid.uuid4().hex}")}
            self._client.put_object(**where, Body=b"")
            offset = float(self._client.head_object(**where)["LastModified"].timestamp()) - time.monotonic()
            self._client.delete_object(**where)
            self._clock_offset = offset
        return time.monotonic() + offset

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (not included) of an object. Raises Damaged when it is not there or shorter."""

        def ask() -> bytes:
            where = {"Bucket": self.address.bucket, "Key": self._full(key)}
            return self._client.get_object(**where, Range=f"bytes={start}-{end - 1}")["Body"].read()

        if start >= end:
            return b""
        data = self._patiently(key, ask)
        if len(data) != end - start:
            raise Damaged(f"{self.where(key)} ends at byte {start + len(data)}, before byte {end}", key)
        return data

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """Write a small object; returns its ETag. Raises Conflict when the condition does not hold."""
        condition: dict[str, str] = {"IfNoneMatch": "*"} if if_absent else ({"IfMatch": if_match} if if_match else {})
        where = {"Bucket": self.address.bucket, "Key": self._full(key)}
        try:
            return self._patiently(
                key,
                lambda: self._client.put_object(**where, Body=data, ContentType="application/json", **condition)[
                    "ETag"
                ],
            )
        except Conflict:
            # A request whose answer got lost is made again; the conflict is then with our own first try.
            found = self.get(key)
            if found is None or found[0] != data:
                raise
            return found[1]

    def list(self, prefix: str) -> Iterator[Stored]:
        """All objects under a prefix, in key order."""
        cut = len(self.address.prefix)
        wanted: dict[str, str] = {"Bucket": self.address.bucket, "Prefix": self._full(prefix)}
        while True:
            page = self._patiently(prefix, lambda: self._client.list_objects_v2(**wanted))
            for row in page.get("Contents", ()):
                yield Stored(row["Key"][cut:], row["Size"], row["ETag"], row["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            wanted["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, keys: Iterable[str]) -> int:
        """Delete objects; returns how many were asked for."""
        batch = list(keys)
        for start in range(0, len(batch), 1000):
            rows = [{"Key": self._full(key)} for key in batch[start : start + 1000]]
            wanted = {"Bucket": self.address.bucket, "Delete": {"Objects": rows, "Quiet": True}}
            self._patiently(batch[start], lambda wanted=wanted: self._client.delete_objects(**wanted))
        return len(batch)

    def copy(self, key: str, to: str) -> None:
        """Copy an object inside the store, whatever its size. Raises Damaged when there is none."""
        source = {"Bucket": self.address.bucket, "Key": self._full(key)}
        self._patiently(key, lambda: self._client.copy(source, self.address.bucket, self._full(to), Config=_TRANSFER))

    def move(self, key: str, to: str) -> None:
        """Give an object another name, whatever its size. Raises Damaged when there is none."""
        self.copy(key, to)
        self.delete([key])

    # --- files ------------------------------------------------------------------------------------------------

    def upload(
        self,
        key: str,
        path: Path,
        stored: Mapping[tuple[int, str], str] | None = None,
    ) -> tuple[int, str]:
        """Stream a file into the store (multipart above 16 MiB, CRC-checked by the store). Returns size and SHA-256.

        stored: `{(size, SHA-256): object}` of what this process has stored already: the same bytes are copied there
        inside the store, and not sent again.
        """
        size, digest = path.stat().st_size, file_sha256(path)
        if (twin := (stored or {}).get((size, digest))) is not None:
            with suppress(Damaged):  # it has been removed meanwhile
                self.copy(twin, key)
                return size, digest
        sent, counting = 0, threading.Lock()

        def count(amount: int) -> None:  # less than nothing when a part is sent anew
            nonlocal sent
            with counting:
                sent += amount

        def send() -> None:
            nonlocal sent
            sent = 0
            self._client.upload_file(str(path), self.address.bucket, self._full(key), Config=_TRANSFER, Callback=count)

        # Parts on their way may never have arrived: what goes beyond them has.
        self._patiently(key, send, lambda: max(0, sent - THREADS * PART_BYTES))
        return size, digest

    def download(self, key: str, path: Path, sha256: str) -> None:
        """Fetch an object to `path` (parallel ranges), verify its SHA-256, and only then let it appear there. Raises
        Damaged.

        What came wrong is fetched once more first: it may have been damaged on its way.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as partial:
                for _ in range(2):
                    self._fetch(key, partial)
                    if (digest := file_sha256(partial)) == sha256:
                        return
                raise Damaged(
                    f"{self.where(key)} is damaged: SHA-256 {digest}, but its manifest says {sha256}", key, digest
                )
        except OSError as error:
            if full := disk_full(error, path.parent):
                raise full from error
            raise

    def digest(self, key: str) -> str:
        """SHA-256 of an object, streamed. Raises Damaged when there is none."""

        size = 0

        def read() -> str:
            nonlocal size
            digest, size = hashlib.sha256(), 0
            body = self._client.get_object(Bucket=self.address.bucket, Key=self._full(key))["Body"]
            for chunk in body.iter_chunks(1 << 20):
                digest.update(chunk)
                size += len(chunk)
            return digest.hexdigest()

        return self._patiently(key, read, lambda: size)

    def _fetch(self, key: str, path: Path) -> None:
        """Write an object's bytes to a file, several ranges at once."""
        where = {"Bucket": self.address.bucket, "Key": self._full(key)}
        size = self._patiently(key, lambda: self._client.head_object(**where))["ContentLength"]
        stop = threading.Event()
        with open(path, "wb") as stream:

            def fetch_range(start: int) -> None:
                at, end = start, min(start + PART_BYTES, size)

                def read_on() -> None:  # from where it broke last
                    nonlocal at
                    body = self._client.get_object(**where, Range=f"bytes={at}-{end - 1}")["Body"]
                    for chunk in body.iter_chunks(1 << 20):
                        if stop.is_set() or self.interrupted.is_set():
                            raise InfraError(f"the download of {self.where(key)} was interrupted")
                        os.pwrite(stream.fileno(), chunk, at)
                        at += len(chunk)
                    if at < end:
                        raise IncompleteReadError(actual_bytes=at - start, expected_bytes=end - start)

                self._patiently(key, read_on, lambda: at - start)

            starts = range(0, size, PART_BYTES)
            if len(starts) <= 1:
                for start in starts:
                    fetch_range(start)
            else:
                in_threads(fetch_range, starts, stop)

    # --- trust ------------------------------------------------------------------------------------------------

    def probe(self) -> None:
        """Refuse a store that ignores `If-None-Match: *`: two writers would then both believe that they published."""
        key = f"probe/{uuid.uuid4().hex}"
        self.put(key, b"1", if_absent=True)
        try:
            self.put(key, b"2", if_absent=True)
        except Conflict:
            return
        finally:
            self.delete([key])
        raise ConfigError(
            f"the object store at {self.address.endpoint or 'AWS'} ignores 'If-None-Match: *', so publishing would not"
            " be atomic: use one that honours conditional writes (AWS S3, SeaweedFS, MinIO, Ceph from Tentacle on)"
        )


def in_threads(function: Callable[[T], R], items: Iterable[T], stop: threading.Event) -> list[R]:
    """Results in the order of the items. The first error, or a signal to this thread, sets `stop`, drops what has not
    begun, and is raised.
    """
    pool = ThreadPoolExecutor(THREADS)
    futures = [pool.submit(function, item) for item in items]
    try:
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
