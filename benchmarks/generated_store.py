"""A store on loopback whose token ids are made when they are asked for: artifacts of any size, and nothing of that size
on a disk or in memory.

    with serving(GeneratedStore(windows=75_000_000, length=2000, seed=1)) as store:
        store.address, store.files()          # a StoreAddress; entries of ids that lie nowhere

It speaks as much of S3 as `stages.core.store` asks for. A window's ids follow from its number, which its first two ids
say. Of the windows that a shuffle stores (`.../windows`, with keys, and `.../shard`) only the numbers are kept, once
every byte was held against what it should be; what is read of them is made anew. Everything else is kept as it is.
"""

from __future__ import annotations

import http.server
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from xml.sax.saxutils import escape

import numpy as np
import xxhash

from stages.core.artifacts import FileEntry
from stages.core.messages import StoreAddress
from stages.lib.formats.shards import row_type, stored_rows
from stages.tokenize.packing import Windows, keys_of

BUCKET = "generated"
PERIOD = 1 << 20
"""Ids after which the pattern begins anew."""
FILE_BYTES = 64 << 20
"""Of one file of ids, about."""


class GeneratedStore(http.server.ThreadingHTTPServer):
    """windows: how many; length: ids in each; seed: of their order. `stored` is called after each object is complete,
    with its key; `broken`: what was stored otherwise than it should be.
    """

    daemon_threads = True

    def __init__(self, windows: int, length: int, seed: int) -> None:
        self.kind, self.count = Windows(length, "uint16", 1 << 16, seed), windows
        self._base = np.random.default_rng(0).integers(0, 1 << 16, PERIOD + length, dtype=np.uint16)
        self.objects: dict[str, bytes] = {}
        self.numbers: dict[str, np.ndarray] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.lock = threading.Lock()
        self.stored: Callable[[str], None] = lambda key: None
        self.broken: list[str] = []
        self.requests = self.bytes_in = self.bytes_out = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> StoreAddress:
        return StoreAddress(bucket=BUCKET, endpoint=f"http://127.0.0.1:{self.server_address[1]}")

    def files(self) -> list[FileEntry]:
        """The files of ids."""
        each = max(1, FILE_BYTES // self.kind.size)
        return [
            FileEntry(
                path="train",
                size=(min(start + each, self.count) - start) * self.kind.size,
                sha256=f"{start:064x}",
                object=f"ids/{start}",
            )
            for start in range(0, self.count, each)
        ]

    def windows(self, numbers: np.ndarray) -> np.ndarray:
        """The ids of windows: [n, length]."""
        rows = np.lib.stride_tricks.sliding_window_view(self._base, self.kind.length)[numbers * 7919 % PERIOD].copy()
        rows[:, 0], rows[:, 1] = numbers & 0xFFFF, numbers >> 16
        return rows

    def records(self, numbers: np.ndarray) -> np.ndarray:
        """Windows as they travel: `Windows.record`."""
        rows = np.empty(len(numbers), self.kind.record)
        rows["key"] = keys_of(numbers, self.kind.seed)
        rows["ids"] = self.windows(numbers)
        return rows

    # --- objects --------------------------------------------------------------------------------------------------

    def size(self, key: str) -> int | None:
        """Bytes of an object; None: there is none."""
        if key.startswith("ids/"):
            each = max(1, FILE_BYTES // self.kind.size)
            return (min(int(key[4:]) + each, self.count) - int(key[4:])) * self.kind.size
        if key in self.numbers:
            return len(self.numbers[key]) * self._row(key).itemsize
        return None if key not in self.objects else len(self.objects[key])

    def read(self, key: str, start: int, end: int) -> bytes:
        """Bytes of an object."""
        if key in self.objects:
            return self.objects[key][start:end]
        row = self._row(key).itemsize
        first, last = start // row, -(-end // row)
        if key.startswith("ids/"):
            data = self.windows(np.arange(int(key[4:]) + first, int(key[4:]) + last)).tobytes()
        else:
            numbers = self.numbers[key][first:last].astype(np.int64)
            data = self._stored(key, numbers).tobytes()
        return data[start - first * row : end - first * row]

    def write(self, key: str, data: bytes) -> None:
        """Keep an object: whole, or what its windows are."""
        if key.endswith(("/windows", "/shard")):
            rows = np.frombuffer(data, self._row(key))
            ids = rows["ids"]
            numbers = ids[:, 0].astype(np.int64) | ids[:, 1].astype(np.int64) << 16
            for n in range(0, len(rows), 4096):
                if self._stored(key, numbers[n : n + 4096]).tobytes() != rows[n : n + 4096].tobytes():
                    self.broken.append(key)
            self.numbers[key] = numbers.astype(np.uint32)
        else:
            self.objects[key] = data
        self.stored(key)

    def _row(self, key: str) -> np.dtype:
        if key.endswith("/windows"):
            return self.kind.record
        plain = np.dtype([("ids", "<u2", (self.kind.length,))])
        return row_type(self.kind.length, "<u2") if key.endswith("/shard") else plain

    def _stored(self, key: str, numbers: np.ndarray) -> np.ndarray:
        """Windows as a shuffle stores them under such a key."""
        return self.records(numbers) if key.endswith("/windows") else stored_rows(self.windows(numbers))


@contextmanager
def serving(store: GeneratedStore) -> Iterator[GeneratedStore]:
    """The store, answering in threads of this process."""
    thread = threading.Thread(target=store.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.shutdown()
        store.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: GeneratedStore

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):  # a client that was killed
            self.close_connection = True

    def _key(self) -> tuple[str, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        return urllib.parse.unquote(url.path).removeprefix(f"/{BUCKET}").lstrip("/"), query

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.server.bytes_out += len(body)

    def _body(self) -> bytes:
        self.server.requests += 1
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.bytes_in += len(data)
        return data

    def do_GET(self) -> None:
        self._body()
        key, query = self._key()
        if "list-type" in query:
            prefix = query.get("prefix", "")
            keys = sorted(k for k in (*self.server.objects, *self.server.numbers) if k.startswith(prefix))
            rows = "".join(
                f"<Contents><Key>{escape(k)}</Key><Size>{self.server.size(k)}</Size><ETag>0</ETag>"
                f"<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for k in keys
            )
            self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode())
            return
        size = self.server.size(key)
        if size is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        first, last = 0, size - 1
        if given := self.headers.get("Range"):
            low, _, high = given.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
        headers = {"ETag": self._etag(key), "Last-Modified": formatdate(usegmt=True)}
        if self.command == "HEAD":
            self.send_response(200)
            for name, value in {"Content-Length": str(size), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        if given:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._answer(206 if given else 200, self.server.read(key, first, last + 1), **headers)

    do_HEAD = do_GET

    def _etag(self, key: str) -> str:
        return f'"{xxhash.xxh3_64_hexdigest(self.server.objects.get(key, b""))}"'

    def do_PUT(self) -> None:
        data = self._body()
        key, query = self._key()
        with self.server.lock:
            if "partNumber" in query:
                self.server.parts[query["uploadId"]][int(query["partNumber"])] = data
                self._answer(200, ETag='"0"')
                return
            there = self.server.size(key) is not None
            if (self.headers.get("If-None-Match") and there) or (
                (version := self.headers.get("If-Match")) and (not there or version != self._etag(key))
            ):
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            self.server.write(key, data)
            self._answer(200, ETag=self._etag(key))

    def do_POST(self) -> None:
        body = self._body()
        key, query = self._key()
        with self.server.lock:
            if "uploads" in query:
                upload = f"{len(self.server.parts)}"
                self.server.parts[upload] = {}
                xml = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                self._answer(200, xml.encode())
            elif "uploadId" in query:
                parts = self.server.parts[query["uploadId"]]
                data = b"".join(parts.pop(number) for number in sorted(parts))
                self.server.write(key, data)
                self._answer(
                    200, b"<CompleteMultipartUploadResult><ETag>&quot;0&quot;</ETag></CompleteMultipartUploadResult>"
                )
            elif "delete" in query:
                for name in urllib.parse.unquote(body.decode()).split("<Key>")[1:]:
                    self.server.objects.pop(name.partition("</Key>")[0], None)
                self._answer(200, b"<DeleteResult></DeleteResult>")

    def do_DELETE(self) -> None:
        self._body()
        key, query = self._key()
        with self.server.lock:
            self.server.parts.pop(query.get("uploadId", ""), None)
            self.server.objects.pop(key, None)
        self._answer(204)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is said of single requests."""
