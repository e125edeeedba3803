"""Files out of the store: in parallel ranges, with SHA-256 beside the transfer.

A download goes on by offset where it broke, and what came wrong is fetched once more before the object counts as
damaged.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError, IncompleteReadError

from stages.core.artifacts import FileEntry
from stages.core.connection import CHUNK, PART_BYTES, STREAMS, Connection
from stages.core.disk import disk_full
from stages.core.errors import InfraError
from stages.core.files import replacing
from stages.core.store_errors import Damaged


class Downloads(Connection):
    """The part of a `Store` that fetches files and ranges of them."""

    def get_file(self, entry: FileEntry, path: Path) -> None:
        """`download` of a stored file."""
        self.download(entry.object, path, entry.sha256, entry.size, entry.blocks)

    def download(self, key: str, path: Path, sha256: str, size: int | None = None, blocks: str = "") -> None:
        """Fetch an object to `path` (parallel ranges), verify its SHA-256, and only then let it appear there. Raises
        Damaged.

        What came wrong is fetched once more first, by `blocks` where they are known: it may have been damaged on its
        way. size: in bytes; None: the store is asked.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if size is None:
                size = self._size(key)
            with replacing(path) as partial, open(partial, "w+b", buffering=0) as stream:
                starts = range(0, size, PART_BYTES)
                digest = self._fetch(key, stream.fileno(), size, starts)
                if digest != sha256:
                    digest = self._fetch(key, stream.fileno(), size, _wrong(stream, size, blocks) or starts)
                if digest != sha256:
                    raise Damaged(
                        f"{self.where(key)} is damaged: SHA-256 {digest}, but its manifest says {sha256}", key, digest
                    )
        except OSError as error:
            if full := disk_full(error, path.parent):
                raise full from error
            raise

    def digest(self, key: str) -> str:
        """SHA-256 of an object, streamed. Raises Damaged when there is none."""
        digest = hashlib.sha256()
        self.read_range(key, 0, self._size(key), lambda chunk, at: digest.update(chunk))
        return digest.hexdigest()

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (not included) of an object. Raises Damaged when it is not there or shorter."""
        chunks: list[bytes] = []
        self.read_range(key, start, end, lambda chunk, at: chunks.append(chunk))
        return b"".join(chunks)

    def read_range(self, key: str, start: int, end: int, take: Callable[[bytes, int], object]) -> None:
        """Give `take` the bytes `start` to `end` (not included) of an object in order, each with its offset, and each
        once, whatever breaks meanwhile. Raises Damaged when it is not there or shorter.
        """
        at, where = start, {"Bucket": self.address.bucket, "Key": self._full(key)}

        def read_on() -> None:  # from where it broke last
            nonlocal at
            answer = self._range(key, where, at, end)
            body = answer["Body"]
            try:
                for chunk in body.iter_chunks(min(CHUNK, end - at)):
                    take(chunk, at)
                    at += len(chunk)
            except BaseException:
                body.close()  # the rest of it would come first on a connection that is used again
                raise
            if at < end:
                raise IncompleteReadError(actual_bytes=at - start, expected_bytes=end - start)

        if start < end:
            self._patiently(key, read_on, lambda: at - start)

    def _range(self, key: str, where: Mapping[str, str], at: int, end: int) -> dict[str, Any]:
        """The store's answer, whose body has exactly these bytes."""
        try:
            answer = self._client.get_object(**where, Range=f"bytes={at}-{end - 1}")
        except ClientError as error:
            if error.response["ResponseMetadata"].get("HTTPStatusCode") == 416:
                raise Damaged(f"{self.where(key)} ends before byte {at + 1}", key) from error
            raise
        span, _, total = answer.get("ContentRange", "").removeprefix("bytes ").partition("/")
        if not span:  # the whole object: some stores say so where all of it was asked for
            span, total = f"0-{answer['ContentLength'] - 1}", str(answer["ContentLength"])
        if span != f"{at}-{end - 1}":
            answer["Body"].close()
            if total.isdigit() and int(total) < end:
                raise Damaged(f"{self.where(key)} ends at byte {total}, before byte {end}", key)
            raise InfraError(f"the object store sent bytes {span} of {self.where(key)}, asked for {at}-{end - 1}")
        return answer

    def _size(self, key: str) -> int:
        where = {"Bucket": self.address.bucket, "Key": self._full(key)}
        return self._patiently(key, lambda: self._client.head_object(**where))["ContentLength"]

    def _fetch(self, key: str, descriptor: int, size: int, starts: Iterable[int]) -> str:
        """Write blocks of an object to a file, several at once; the SHA-256 of the whole file, computed beside it."""
        digest, stop = hashlib.sha256(), threading.Event()

        def fetch_block(start: int) -> None:
            def take(chunk: bytes, at: int) -> None:
                if stop.is_set() or self.interrupted.is_set():
                    raise InfraError(f"the download of {self.where(key)} was interrupted")
                _write(descriptor, chunk, at)

            self.read_range(key, start, min(start + PART_BYTES, size), take)

        pool = ThreadPoolExecutor(STREAMS)
        try:
            coming = {start: pool.submit(fetch_block, start) for start in starts}
            for start in range(0, size, PART_BYTES):
                if start in coming:
                    coming[start].result()
                for at in range(start, min(start + PART_BYTES, size), CHUNK):  # from the page cache
                    digest.update(os.pread(descriptor, min(CHUNK, size - at), at))
            return digest.hexdigest()
        except BaseException:
            stop.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def block_crc(blocks: str, number: int) -> int | None:
    """CRC32 of a block, from `FileEntry.blocks`; None: not known."""
    text = blocks[8 * number : 8 * number + 8]
    return int(text, 16) if text else None


def _wrong(stream: Any, size: int, blocks: str) -> list[int]:
    """Where the blocks of a file begin whose CRC32 is not the known one."""
    wrong: list[int] = []
    for start in range(0, size if blocks else 0, PART_BYTES):
        data = os.pread(stream.fileno(), min(PART_BYTES, size - start), start)
        if zlib.crc32(data) != block_crc(blocks, start // PART_BYTES):
            wrong.append(start)
    return wrong


def _write(descriptor: int, data: bytes, at: int) -> None:
    """All of it: a disk that fills up takes a part, and says so only when asked again."""
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, at)
        left, at = left[count:], at + count
