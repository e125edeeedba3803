"""Files into the store: in parallel parts, read once, with SHA-256 of the file and CRC32 of each part beside the
transfer.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import threading
import zlib
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from stages.core import connection
from stages.core.artifacts import FileEntry
from stages.core.connection import CHUNK, PART_BYTES, STREAMS, THREADS, Connection
from stages.core.errors import InfraError
from stages.core.store_errors import Damaged, Unavailable

MOST_PARTS = 10_000
"""S3 takes no more parts of one object."""
RESTARTS = 5
"""How often an upload begins anew when the store has forgotten what it had of it."""
_COPY = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=THREADS)


class Sums(NamedTuple):
    """Of a file: SHA-256, and CRC32 of each block as `FileEntry.blocks` has them."""

    sha256: str
    blocks: str


class _Forgotten(Exception):
    """The store no longer knows a transfer in parts: it was restarted, or somebody swept it up."""


class Uploads(Connection):
    """The part of a `Store` that stores files."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._buffers = threading.BoundedSemaphore(2 * THREADS)  # parts in memory, of all uploads: 256 MiB

    def upload(self, key: str, path: Path, stored: Mapping[tuple[int, str], str] | None = None) -> tuple[int, str]:
        """`put_file`; returns size and SHA-256."""
        entry = self.put_file(key, path, stored=stored)
        return entry.size, entry.sha256

    def put_file(
        self, key: str, path: Path, name: str = "", stored: Mapping[tuple[int, str], str] | None = None
    ) -> FileEntry:
        """Stream a file into the store, read once; the store checks the CRC32 of each part. name: `path` of the entry;
        '': the file's own.

        stored: `{(size, SHA-256): object}` of what this process has stored already: the same bytes are copied there
        inside the store, and not sent again. Raises InfraError, ConfigError or OSError.
        """
        size = path.stat().st_size
        sums = None
        if any(size == known for known, _ in stored or ()):
            sums = file_sums(path)
            if (twin := (stored or {}).get((size, sums.sha256))) is not None:
                with suppress(Damaged):  # it has been removed meanwhile
                    self.copy(twin, key)
                    return _entry(key, path, name, size, sums)
        sums = self._send_whole(key, path, size) if size <= PART_BYTES else self._send_in_parts(key, path, size)
        return _entry(key, path, name, size, sums)

    def copy(self, key: str, to: str) -> None:
        """Copy an object inside the store, whatever its size. Raises Damaged when there is none."""
        source = {"Bucket": self.address.bucket, "Key": self._full(key)}
        self._patiently(key, lambda: self._client.copy(source, self.address.bucket, self._full(to), Config=_COPY))

    def _send_whole(self, key: str, path: Path, size: int) -> Sums:
        with self._buffers:
            data = path.read_bytes()
            if len(data) != size:
                raise _changed(path)
            crc = zlib.crc32(data)
            where = {"Bucket": self.address.bucket, "Key": self._full(key)}
            self._patiently(key, lambda: self._client.put_object(**where, Body=data, ChecksumCRC32=_base64(crc)))
            return Sums(hashlib.sha256(data).hexdigest(), f"{crc:08x}" if data else "")

    def _send_in_parts(self, key: str, path: Path, size: int) -> Sums:
        for _ in range(RESTARTS):
            with suppress(_Forgotten):
                return self._send_parts(key, path, size)
            if self.interrupted.wait(connection.PAUSES[0]):
                break
        raise Unavailable(f"the object store forgot an unfinished upload of {self.where(key)}")

    def _send_parts(self, key: str, path: Path, size: int) -> Sums:
        """One transfer in parts, from its beginning. Raises _Forgotten."""
        where = {"Bucket": self.address.bucket, "Key": self._full(key)}
        begun = self._patiently(key, lambda: self._client.create_multipart_upload(**where, ChecksumAlgorithm="CRC32"))
        where["UploadId"] = begun["UploadId"]
        part_bytes = PART_BYTES * -(-size // (PART_BYTES * MOST_PARTS))
        digest = hashlib.sha256()
        crcs: list[int] = []
        parts: list[Future[dict[str, Any]]] = []
        free: deque[bytearray] = deque()
        stop = threading.Event()

        def send(number: int, buffer: bytearray, length: int, crc: int) -> dict[str, Any]:
            try:
                if stop.is_set() or self.interrupted.is_set():
                    raise InfraError(f"the upload of {self.where(key)} was interrupted")
                return self._send_part(key, where, number, memoryview(buffer)[:length], crc)
            finally:
                free.append(buffer)
                self._buffers.release()

        pool = ThreadPoolExecutor(STREAMS)
        try:
            with open(path, "rb", buffering=0) as stream:
                for start in range(0, size, part_bytes):
                    if len(parts) >= STREAMS:  # so many are on their way; one that failed ends it here
                        parts[-STREAMS].result()
                    self._buffers.acquire()
                    try:
                        buffer = free.popleft() if free else bytearray(part_bytes)
                        length = min(part_bytes, size - start)
                        crcs += (part := _read_part(stream, memoryview(buffer)[:length], digest, path))
                        crc = part[0] if len(part) == 1 else zlib.crc32(memoryview(buffer)[:length])
                    except BaseException:
                        self._buffers.release()
                        raise
                    parts.append(pool.submit(send, len(parts) + 1, buffer, length, crc))
            rows = [part.result() for part in parts]
            self._complete(key, where, rows, size)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True)  # each part gives its buffer back
            with suppress(Exception):  # what is not taken back costs space until it is swept up, nothing else
                self._client.abort_multipart_upload(**where)
            raise
        finally:
            pool.shutdown(wait=True)
        return Sums(digest.hexdigest(), "".join(f"{crc:08x}" for crc in crcs))

    def _send_part(self, key: str, where: Mapping[str, str], number: int, data: memoryview, crc: int) -> dict[str, Any]:
        def send() -> dict[str, Any]:
            with _forgetting():
                return self._client.upload_part(
                    **where, PartNumber=number, Body=_Body(data), ContentLength=len(data), ChecksumCRC32=_base64(crc)
                )

        etag = self._patiently(key, send)["ETag"]
        return {"PartNumber": number, "ETag": etag, "ChecksumCRC32": _base64(crc)}

    def _complete(self, key: str, where: Mapping[str, str], rows: list[dict[str, Any]], size: int) -> None:
        def complete() -> None:
            with _forgetting():
                self._client.complete_multipart_upload(**where, MultipartUpload={"Parts": rows})

        try:
            self._patiently(key, complete)
        except _Forgotten:  # it may be complete, and the answer that said so was lost
            if not self._holds(key, rows, size):
                raise

    def _holds(self, key: str, rows: list[dict[str, Any]], size: int) -> bool:
        """Whether an object is the one of these parts, by size and ETag (MD5 of the parts' MD5)."""
        try:
            where = {"Bucket": self.address.bucket, "Key": self._full(key)}
            head = self._patiently(key, lambda: self._client.head_object(**where))
            parts = b"".join(bytes.fromhex(row["ETag"].strip('"')) for row in rows)
        except (Damaged, ValueError):
            return False
        etag = f'"{hashlib.md5(parts, usedforsecurity=False).hexdigest()}-{len(rows)}"'
        return head["ContentLength"] == size and head["ETag"] == etag


def file_sums(path: Path) -> Sums:
    """SHA-256 and blocks of a file, streamed. Raises OSError."""
    digest, size = hashlib.sha256(), path.stat().st_size
    crcs: list[int] = []
    buffer = memoryview(bytearray(min(size, PART_BYTES)))
    with open(path, "rb", buffering=0) as stream:
        for start in range(0, size, PART_BYTES):
            crcs += _read_part(stream, buffer[: min(PART_BYTES, size - start)], digest, path)
    return Sums(digest.hexdigest(), "".join(f"{crc:08x}" for crc in crcs))


def _read_part(stream: io.RawIOBase | Any, part: memoryview, digest: Any, path: Path) -> list[int]:
    """Fill a buffer from a file, adding to its SHA-256 on the way; the CRC32 of each block in it."""
    crcs: list[int] = []
    for start in range(0, len(part), PART_BYTES):
        block, at, crc = part[start : start + PART_BYTES], 0, 0
        while at < len(block):
            if not (count := stream.readinto(block[at : at + CHUNK])):
                raise _changed(path)
            piece = block[at : at + count]
            digest.update(piece)
            crc = zlib.crc32(piece, crc)
            at += count
        crcs.append(crc)
    return crcs


class _Body(io.RawIOBase):
    """Bytes as the client wants them, a file, without a copy."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def __len__(self) -> int:
        return len(self._data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = min(len(self._data), max(0, offset + (0, self._at, len(self._data))[whence]))
        return self._at

    def read(self, size: int | None = -1) -> Any:
        end = len(self._data) if size is None or size < 0 else min(len(self._data), self._at + size)
        piece, self._at = self._data[self._at : end], end
        return piece


@contextmanager
def _forgetting() -> Generator[None]:
    """Turn the store's answer that it knows no such transfer into _Forgotten."""
    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "NoSuchUpload":
            raise _Forgotten from error
        raise


def _entry(key: str, path: Path, name: str, size: int, sums: Sums) -> FileEntry:
    return FileEntry(path=name or path.name, size=size, sha256=sums.sha256, object=key, blocks=sums.blocks)


def _changed(path: Path) -> InfraError:
    return InfraError(f"{path} became shorter while it was uploaded: something else writes to it")


def _base64(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4)).decode()
