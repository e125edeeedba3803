"""A stored file that is read by ranges: blocks ahead, several at once, verified; small reads stay small.

Whole blocks of 16 MiB are held against their CRC32 (`FileEntry.blocks`) before a reader sees them; one that came wrong
is fetched once more. A read that wants less than half a block fetches less: what is read on from the beginning of a
block is held against its CRC32 when its end comes, other such pieces are not, and their formats' own checks must serve.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from stages.core.artifacts import FileEntry
from stages.core.connection import PART_BYTES, STREAMS, THREADS
from stages.core.downloads import block_crc
from stages.core.errors import InfraError
from stages.core.store import Store
from stages.core.store_errors import Damaged

BLOCK = PART_BYTES
NEAR = 256 << 10
"""Bytes of the smallest request; reading on, each is twice the one before."""
MEMORY = 256 << 20
"""Bytes that all open files of a process hold together; with many open, each fetches less at a time."""
BUFFER = 128 << 10


class StoredFile(io.BufferedReader):
    """A stored file as Python reads files. Large reads are passed on as they are."""

    def __init__(self, store: Store, entry: FileEntry, verified: bool = False) -> None:
        self._ranges = RangeFile(store, entry, verified)
        super().__init__(self._ranges, BUFFER)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and 0 <= size <= BUFFER:
            return super().read(size)
        at = self.tell()
        data = self._ranges.read_at(at, self._ranges.size - at if size is None or size < 0 else size)
        self.seek(at + len(data))
        return data


class RangeFile(io.RawIOBase):
    """The same without a buffer. Usable from many threads: they share one position."""

    _open = 0
    """How many are open in this process."""
    _counting = threading.Lock()

    def __init__(self, store: Store, entry: FileEntry, verified: bool = False) -> None:
        """verified: only whole blocks are fetched, and none ahead of what is asked for."""
        self._store, self._entry, self.size, self._verified = store, entry, entry.size, verified
        blocks = -(-entry.size // BLOCK)
        self._blocks = entry.blocks if len(entry.blocks) == 8 * blocks else ""
        self._lock = threading.RLock()
        self._position = 0
        self._window = (0, b"")  # where it begins, its bytes
        self._held: dict[int, bytes] = {}
        self._coming: dict[int, Future[bytes]] = {}
        self._fetched = (0, 0)  # the last range that was fetched
        self._summed = (0, 0)  # up to here, from the beginning of its block: its CRC32
        with RangeFile._counting:
            RangeFile._open += 1

    def close(self) -> None:
        if not self.closed:
            with RangeFile._counting:
                RangeFile._open -= 1
            for future in self._coming.values():
                future.cancel()
            self._coming, self._held, self._window = {}, {}, (0, b"")
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with self._lock:
            self._position = max(0, offset + (0, self._position, self.size)[whence])
            return self._position

    def readinto(self, buffer: Any, /) -> int:
        with self._lock:
            data = self.read_at(self._position, len(buffer))
            buffer[: len(data)] = data
            self._position += len(data)
            return len(data)

    def read_at(self, at: int, count: int) -> bytes:
        """Bytes from `at` on, `count` of them where there are so many. Raises InfraError, or Damaged when the file is
        lost, shorter, or holds other bytes.
        """
        if self.closed:
            raise ValueError("read of a closed file")
        end = min(at + count, self.size)
        pieces: list[memoryview] = []
        with self._lock:
            while at < end:
                pieces.append(self._piece(at, end))
                at += len(pieces[-1])
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, at: int, end: int) -> memoryview:
        """Some of the bytes from `at` on, at least one and none from `end` on."""
        start, data = self._window
        if start <= at < start + len(data):
            return memoryview(data)[at - start : end - start]
        number = at // BLOCK
        if number in self._held or number in self._coming:
            return memoryview(self._block(number, at, end))[at - number * BLOCK : end - number * BLOCK]
        length = max(end - at, NEAR)
        if at == self._fetched[1]:
            length = max(length, 2 * (self._fetched[1] - self._fetched[0]))
        if end - at < BLOCK // 2:
            length = min(length, max(end - at, self._share()))
        last, begun = min((number + 1) * BLOCK, self.size), self._summed[0] == at > number * BLOCK
        whole = self._verified or last - number * BLOCK <= 4 * NEAR
        if whole or (length >= BLOCK // 2 and not begun):
            return memoryview(self._block(number, at, end))[at - number * BLOCK : end - number * BLOCK]
        data = self._fetch_some(at, last if length >= BLOCK // 2 else min(at + length, last))
        return memoryview(data)[: end - at]

    def _share(self) -> int:
        """Bytes that this file may fetch at a time, so that all that are open hold MEMORY together: of whole blocks
        it has two.
        """
        share = MEMORY // RangeFile._open
        return share if share >= 2 * BLOCK else max(NEAR, min(share, BLOCK // 2 - 1))

    def _fetch_some(self, at: int, end: int) -> bytes:
        """Less than a block, and no more than what is left of it."""
        data = self._store.get_range(self._entry.object, at, end)
        number = at // BLOCK
        first = at == number * BLOCK
        if first or self._summed[0] == at:
            self._summed = (end, zlib.crc32(data, 0 if first else self._summed[1]))
            expected = block_crc(self._blocks, number)
            if end == min((number + 1) * BLOCK, self.size) and expected not in (None, self._summed[1]):
                self._store_block(number)  # Damaged, where it is so in the store
                raise InfraError(f"bytes of {self._store.where(self._entry.object)} changed on their way: try again")
        self._window, self._fetched = (at, data), (at, end)
        return data

    def _block(self, number: int, at: int, end: int) -> bytes:
        """A whole block; those that come next are on their way."""
        ahead = min(number + STREAMS, -(-end // BLOCK))  # what this read wants anyway
        on = not self._verified and (at == self._fetched[1] or number - 1 in self._held)
        if on and self._roomy():
            ahead = max(ahead, min(number + 2, -(-self.size // BLOCK)))
        for following in range(number + 1, ahead):
            if following not in self._held and following not in self._coming:
                self._coming[following] = _pool(os.getpid()).submit(self._store_block, following)
        if number not in self._held:
            coming = self._coming.pop(number, None)
            data = coming.result() if coming is not None else self._store_block(number)
            self._held = {n: d for n, d in self._held.items() if n == number - 1} if self._roomy() else {}
            self._held[number] = data
            for n in [n for n in self._coming if n < number or n > number + STREAMS]:  # the reader went elsewhere
                self._coming.pop(n).cancel()
            self._fetched = (number * BLOCK, min((number + 1) * BLOCK, self.size))
        return self._held[number]

    def _roomy(self) -> bool:
        return RangeFile._open * 3 * BLOCK <= MEMORY

    def _store_block(self, number: int) -> bytes:
        """A block from the store, verified. One that came wrong is fetched once more. Raises Damaged."""
        start, end = number * BLOCK, min((number + 1) * BLOCK, self.size)
        expected = block_crc(self._blocks, number)
        data = b""
        for _ in range(2):
            data = self._store.get_range(self._entry.object, start, end)
            if expected is None or zlib.crc32(data) == expected:
                return data
        raise Damaged(
            f"{self._store.where(self._entry.object)} is damaged: bytes {start} to {end} of {self._entry.path} have"
            f" CRC32 {zlib.crc32(data):08x}, but its manifest says {expected:08x}",
            self._entry.object,
        )


@functools.lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that read ahead: of this process, none is inherited through a fork."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="read-ahead")
