"""A store that misbehaves: a proxy on loopback before the real one, which answers 503, 429 or 507, refuses credentials
whose time is over, cuts bodies short, hangs up, says nothing at all, loses answers, flips a byte of what is sent or
answered, or is slow.
"""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from stages.core.messages import StoreAddress
from stages.core.store import Store
from tests.support.limits import HANG

Rule = Callable[[str, str], str | None]
"""Given method and path: None to pass the request on, or what to do: one of `WAYS`."""
REFUSED = {
    "503": (503, "SlowDown"), "429": (429, "SlowDown"), "full": (507, "XMinioStorageFull"),
    "expired": (400, "ExpiredToken"), "expired 403": (403, "ExpiredToken"),
}  # fmt: skip
WAYS = (*REFUSED, "drop", "hang", "cut", "lost", "flip", "flip sent", "slow")
"""Those of `REFUSED` are answers: status and code. "hang": there is none, until the client gives up; "drop": the
connection ends before the store has heard of the request; "lost": after it, before its answer; "cut": after half of the
answer's body; "flip": a byte of the answer's body is another; "flip sent": of the request's body; "slow": the answer
comes in eight pieces.
"""


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on. `rule` may be changed at any time; `log` has (method, path, what was done)."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        self.upstream, self.rule, self.log = urlsplit(upstream).netloc, _pass, []  # type: ignore[var-annotated]
        super().__init__(("127.0.0.1", 0), _Handler)

    rule: Rule
    log: list[tuple[str, str, str]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


def _flipped(body: bytes) -> bytes:
    """The same with one bit of its middle byte turned."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 0x10]) + body[middle + 1 :] if body else body


def _pass(method: str, path: str) -> None:
    return None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what = self.server.rule(self.command, self.path)
        self.server.log.append((self.command, self.path, what or "pass"))
        if what == "drop":
            self.close_connection = True
            return
        if what == "hang":
            self.connection.settimeout(HANG)
            with suppress(OSError):
                self.connection.recv(1)
            self.close_connection = True
            return
        if what in REFUSED:
            status, code = REFUSED[what]
            after = [("Retry-After", "1")] if what == "429" else []
            self._answer(status, f"<Error><Code>{code}</Code></Error>".encode(), after)
            return
        if what == "flip sent":
            body = _flipped(body)
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}  # Host stays: it is signed
        upstream.request(self.command, self.path, body or None, headers)
        found = upstream.getresponse()
        data = found.read()
        if what == "lost":
            self.close_connection = True
            return
        if what == "flip":
            data = _flipped(data)
        kept = [
            (k, v)
            for k, v in found.getheaders()
            if k.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server")
        ]
        self._answer(found.status, data, kept, what, found.getheader("Content-Length"))

    def _answer(
        self, status: int, body: bytes, headers: list[tuple[str, str]], what: str = "", length: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            sent = body[: len(body) // 2] if what == "cut" else body
            pieces = 8 if what == "slow" else 1
            step = max(1, -(-len(sent) // pieces))
            for start in range(0, len(sent), step):
                self.wfile.write(sent[start : start + step])
                time.sleep(0.01 if what == "slow" else 0)
        self.close_connection = what == "cut"

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any

    def log_message(self, *args: object) -> None:
        """Nothing to say."""


@contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """A proxy before `upstream`, for as long as the block lasts."""
    server = Proxy(upstream)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def store_behind(proxy: Proxy, address: StoreAddress, patience: float, timeout: float = 60.0) -> Store:
    """The store through the proxy. The client itself asks once: the patience is the store's own. timeout: seconds after
    which the client gives up on an answer.
    """
    client = boto3.client(
        "s3",
        endpoint_url=proxy.url,
        region_name="us-east-1",
        config=Config(
            s3={"addressing_style": "path", "payload_signing_enabled": False},
            retries={"max_attempts": 0},
            read_timeout=timeout,
        ),
    )
    return Store(address.model_copy(update={"endpoint": proxy.url}), client, patience=patience)
