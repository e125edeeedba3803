"""The object store: S3 through boto3. Conditional writes, checksummed streaming transfers, errors in one clear line.

Credentials come from the standard AWS environment or files; nothing here holds or prints them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from stages.core.contracts import ConfigError, InfraError, StoreAddress

PART_BYTES = 16 << 20
"""Part size of multipart transfers: 16 MiB x 8 threads measured fastest on one host (facts/orchestration.md 7)."""
_TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=8)


class Conflict(Exception):
    """A conditional write lost: the object exists already, or is no longer the one that was read."""


@dataclass(frozen=True)
class Stored:
    """One object in a listing."""

    key: str
    size: int
    etag: str


def disk_full(error: OSError, where: Path | str) -> InfraError | None:
    """The clear error for a full disk, or None when `error` is something else."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InfraError(f"no space left on the disk that holds {where}: free some, or point the folder elsewhere")
    return None


class Store:
    """One bucket (and prefix) of an S3 store. Thread-safe."""

    def __init__(self, address: StoreAddress, client: Any = None) -> None:
        self.address = address
        self._client = client or boto3.Session().client(  # the default session keeps the first credentials that it saw
            "s3",
            endpoint_url=address.endpoint,
            region_name=address.region,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 4, "mode": "standard"},
                connect_timeout=5,
                read_timeout=60,
                max_pool_connections=32,
            ),
        )

    def __repr__(self) -> str:
        return f"Store({self.where('')})"

    def where(self, key: str) -> str:
        """The object's full name, for messages."""
        return f"s3://{self.address.bucket}/{self.address.prefix}{key}"

    def _full(self, key: str) -> str:
        return self.address.prefix + key

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn the client's errors into ones that a user can act on."""
        try:
            yield
        except NoCredentialsError as error:
            raise ConfigError(
                "no credentials for the object store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run 'moxin up'"
            ) from error
        except (ClientError, BotoCoreError, Boto3Error) as error:
            answer = error if isinstance(error, ClientError) else error.__context__  # an upload's error wraps the answer
            if isinstance(answer, ClientError):
                raise self._answered(key, answer) from error
            raise InfraError(f"the object store at {self._server} cannot be reached ({type(error).__name__}): is it up? try 'moxin up'") from error

    @property
    def _server(self) -> str:
        return self.address.endpoint or f"AWS S3 in {self.address.region}"

    def _answered(self, key: str, error: ClientError) -> Exception:
        """What an answer of the store other than success means."""
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status in (409, 412) or code in ("PreconditionFailed", "ConditionalRequestConflict"):
            return Conflict(self.where(key))
        if status == 403:
            hint = "check the credentials, and with 'moxin status' that the store there is yours"
            return ConfigError(f"the object store at {self._server} refuses access to {self.where(key)} ({code}): {hint}")
        return InfraError(f"the object store failed on {self.where(key)}: {code} (HTTP {status})")

    # --- small objects ----------------------------------------------------------------------------------------

    def get(self, key: str) -> tuple[bytes, str] | None:
        """An object's bytes and ETag, or None if there is none."""
        with self._errors(key):
            try:
                answer = self._client.get_object(Bucket=self.address.bucket, Key=self._full(key))
                return answer["Body"].read(), answer["ETag"]
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                    if error.response["Error"].get("Code") == "NoSuchBucket":
                        raise InfraError(f"the object store has no bucket '{self.address.bucket}'") from error
                    return None
                raise

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """Write a small object; returns its ETag. Raises Conflict when the condition does not hold."""
        condition: dict[str, str] = {"IfNoneMatch": "*"} if if_absent else ({"IfMatch": if_match} if if_match else {})
        try:
            with self._errors(key):
                answer = self._client.put_object(
                    Bucket=self.address.bucket, Key=self._full(key), Body=data, ContentType="application/json", **condition
                )
                return answer["ETag"]
        except Conflict:
            # The client repeats a request whose answer got lost; the conflict is then with our own first try.
            found = self.get(key)
            if found is None or found[0] != data:
                raise
            return found[1]

    def list(self, prefix: str) -> Iterator[Stored]:
        """All objects under a prefix, in key order."""
        cut = len(self.address.prefix)
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.address.bucket, Prefix=self._full(prefix)
            )
            for page in pages:
                for row in page.get("Contents", ()):
                    yield Stored(row["Key"][cut:], row["Size"], row["ETag"])

    def delete(self, keys: Iterable[str]) -> int:
        """Delete objects; returns how many were asked for."""
        batch = list(keys)
        with self._errors(batch[0] if batch else ""):
            for start in range(0, len(batch), 1000):
                rows = [{"Key": self._full(key)} for key in batch[start : start + 1000]]
                self._client.delete_objects(Bucket=self.address.bucket, Delete={"Objects": rows, "Quiet": True})
        return len(batch)

    # --- files ------------------------------------------------------------------------------------------------

    def upload(self, key: str, path: Path, on_bytes: Callable[[int], None] | None = None) -> tuple[int, str]:
        """Stream a file into the store (multipart above 16 MiB, CRC-checked by the store). Returns size and SHA-256."""
        digest = file_sha256(path)
        with self._errors(key):
            self._client.upload_file(
                str(path), self.address.bucket, self._full(key), Config=_TRANSFER, Callback=on_bytes
            )
        return path.stat().st_size, digest

    def download(self, key: str, path: Path, sha256: str, on_bytes: Callable[[int], None] | None = None) -> None:
        """Fetch an object to `path` (parallel ranges), verify its SHA-256, and only then let it appear there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with self._errors(key):
                self._client.download_file(
                    self.address.bucket, self._full(key), str(partial), Config=_TRANSFER, Callback=on_bytes
                )
            if (found := file_sha256(partial)) != sha256:
                raise InfraError(f"{self.where(key)} is damaged: SHA-256 {found}, but its manifest says {sha256}")
            os.replace(partial, path)
        except OSError as error:
            if full := disk_full(error, path.parent):
                raise full from error
            raise
        finally:
            partial.unlink(missing_ok=True)

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
            f"the object store at {self.address.endpoint or 'AWS'} ignores 'If-None-Match: *', so publishing would not be "
            "atomic: use one that honours conditional writes (AWS S3, SeaweedFS, MinIO, Ceph from Tentacle on)"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, streamed."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
