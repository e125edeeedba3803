"""The object store: S3 through boto3. Conditional writes, checksummed streaming transfers, errors in one clear line.

Small objects stand here; files are moved by `stages.core.uploads` and `stages.core.downloads`, all over
`stages.core.connection`.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from botocore.exceptions import ClientError

from stages.core.connection import PART_BYTES, THREADS, in_threads
from stages.core.downloads import Downloads
from stages.core.errors import ConfigError, InfraError
from stages.core.store_errors import TRANSIENT, Conflict, Damaged, Unavailable
from stages.core.uploads import Uploads

__all__ = ["PART_BYTES", "THREADS", "Store", "Stored", "in_threads"]


@dataclass(frozen=True)
class Stored:
    """One object in a listing."""

    key: str
    size: int
    etag: str
    written: float = 0.0
    """When, in seconds since the epoch, by the store's clock (`Store.now`)."""


class Store(Uploads, Downloads):
    """One bucket (and prefix) of an S3 store. Thread-safe; `Connection` says what it is made of."""

    # --- small objects ----------------------------------------------------------------------------------------

    def get(self, key: str) -> tuple[bytes, str] | None:
        """An object's bytes and ETag, or None if there is none."""
        stored = self.get_with_age(key)
        return None if stored is None else stored[:2]

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
            present = self.get(key)
            if present is None or present[0] != data:
                raise
            return present[1]

    def list(self, prefix: str) -> Iterator[Stored]:
        """All objects under a prefix, in key order."""
        cut = len(self.address.prefix)
        query: dict[str, str] = {"Bucket": self.address.bucket, "Prefix": self._full(prefix)}
        while True:
            page = self._patiently(prefix, lambda: self._client.list_objects_v2(**query))
            for row in page.get("Contents", ()):
                yield Stored(row["Key"][cut:], row["Size"], row["ETag"], row["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            token = page.get("NextContinuationToken")
            if not token or token == query.get("ContinuationToken"):
                raise InfraError(f"the object store lists {self.where(prefix)} without an end: it says no next page")
            query["ContinuationToken"] = token

    def stored(self, key: str) -> Stored | None:
        """One object as a list has it, or None if there is none; asked for by its name, so that the answer is never
        late, as lists of some stores are.
        """
        where = {"Bucket": self.address.bucket, "Key": self._full(key)}
        try:
            row = self._patiently(key, lambda: self._client.head_object(**where))
        except Damaged:
            return None
        return Stored(key, row["ContentLength"], row["ETag"], row["LastModified"].timestamp())

    def delete(self, keys: Iterable[str]) -> int:
        """Delete objects; returns how many were asked for. Raises InfraError when the store keeps one."""
        batch = list(keys)
        for start in range(0, len(batch), 1000):
            self._patiently(batch[start], functools.partial(self._delete_some, batch[start : start + 1000]))
        return len(batch)

    def _delete_some(self, keys: list[str]) -> None:
        """One request, of 1,000 objects at most. What it could not delete stands in its answer, whose status is 200."""
        rows = [{"Key": self._full(key)} for key in keys]
        query = {"Bucket": self.address.bucket, "Delete": {"Objects": rows, "Quiet": True}}
        refused = self._client.delete_objects(**query).get("Errors", [])
        if refused := [row for row in refused if row.get("Code") not in ("NoSuchKey", "NoSuchVersion")]:
            first = refused[0]
            key = str(first.get("Key", "")).removeprefix(self.address.prefix)
            code, message = first.get("Code", "no code"), " ".join(str(first.get("Message", "")).split())
            what = f"{self.where(key)} and {len(refused) - 1} more" if len(refused) > 1 else self.where(key)
            kind = Unavailable if code in TRANSIENT else InfraError
            raise kind(f"the object store did not delete {what}: {code} {message}".rstrip())

    def move(self, key: str, to: str) -> None:
        """Give an object another name, whatever its size. Raises Damaged when there is none."""
        self.copy(key, to)
        self.delete([key])

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
