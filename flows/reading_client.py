"""A light client of a store on this machine, for commands that read: loading botocore, and the model of S3 with it,
takes as much processor time as all the rest of `moxin ls`.

It reads objects and lists them, and knows two answers: there it is, and it is not there. All else, whatever goes wrong
too, is left to botocore's client, which is loaded then and asks again. Errors, patience and checksums are the same.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import http.client
import io
import os
import re
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, unquote_plus, urlsplit
from xml.etree import ElementTree

from botocore.exceptions import ClientError

from stages.core import connection
from stages.core.messages import StoreAddress

EMPTY = hashlib.sha256(b"").hexdigest()
SECONDS = 60
"""For which an answer is waited for, as botocore's client does here."""
CHECKSUM = "x-amz-checksum-crc32"
RANGE = re.compile(r"bytes=(\d+)-(\d+)")
LARGEST = connection.PART_BYTES
"""Bytes of a range at most: an answer lies in memory, and what is larger is botocore's to stream."""


def client(address: StoreAddress, environment: Mapping[str, str] = os.environ) -> Any:
    """The client that reads a store: a light one where the store is on this machine and its keys are in the
    environment; None, for botocore's own, elsewhere: certificates, proxies and credentials that change are its work.
    """
    place = urlsplit(address.endpoint or "")
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if place.scheme != "http" or place.hostname not in ("127.0.0.1", "localhost") or not place.port:
        return None
    if not key or not secret or environment.get("AWS_SESSION_TOKEN"):
        return None
    return ReadingClient(address, key, secret)


class _NotSimple(Exception):
    """What botocore's client should ask, or an answer that it should see."""


class _Body(io.BytesIO):
    """The body of an answer."""

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        return iter(functools.partial(self.read, size), b"")


class ReadingClient:
    """`get_object`, `head_object` and `list_objects_v2` as botocore's client has them; all else is that client's own.
    Thread-safe.
    """

    def __init__(
        self,
        address: StoreAddress,
        key: str,
        secret: str,
        full: Callable[[StoreAddress], Any] = connection.client,
    ) -> None:
        self._address, self._key, self._secret, self._full = address, key, secret, full
        self._netloc = urlsplit(address.endpoint or "").netloc
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._lock, self._loaded, self._signing = threading.Lock(), None, ("", b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._botocore(), name)

    def _botocore(self) -> Any:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._full(self._address)
            return self._loaded

    def get_object(self, **query: Any) -> Any:
        """A whole object, as records are read; or a range of `LARGEST` bytes at most."""
        try:
            headers, body = self._object("GET", "GetObject", query)
            span = {"ContentRange": headers["content-range"]} if "content-range" in headers else {}
            return self._answer(headers) | {"Body": _Body(body), "ContentLength": len(body)} | span
        except _NotSimple:
            return self._botocore().get_object(**query)

    def head_object(self, **query: Any) -> Any:
        """What an object is."""
        try:
            headers, _ = self._object("HEAD", "HeadObject", query)
            return self._answer(headers) | {"ContentLength": int(headers["content-length"])}
        except (_NotSimple, KeyError, ValueError):
            return self._botocore().head_object(**query)

    def list_objects_v2(self, **query: Any) -> Any:
        """A page of a listing."""
        try:
            if query.keys() - {"Bucket", "Prefix", "ContinuationToken"}:
                raise _NotSimple
            asked = {"encoding-type": "url", "list-type": "2", "prefix": query.get("Prefix", "")}
            if token := query.get("ContinuationToken"):
                asked["continuation-token"] = token
            status, _, body = self._ask("GET", f"/{query['Bucket']}", asked)
            if status != 200:
                raise _NotSimple
            return _page(body)
        except (_NotSimple, ElementTree.ParseError, ValueError):
            return self._botocore().list_objects_v2(**query)

    def _object(self, method: str, operation: str, query: Mapping[str, Any]) -> tuple[dict[str, str], bytes]:
        """Headers and body of an object. Raises ClientError where there is none, and _NotSimple."""
        span = _small(query["Range"]) if "Range" in query else None
        if set(query) - {"Range"} != {"Bucket", "Key"}:
            raise _NotSimple
        status, headers, body = self._ask(method, f"/{query['Bucket']}/{query['Key']}", {}, span)
        if status == 404:
            code = "404" if method == "HEAD" else _code(body)
            if code in ("404", "NoSuchKey"):
                about = {"HTTPStatusCode": 404, "HTTPHeaders": headers}
                raise ClientError({"Error": {"Code": code}, "ResponseMetadata": about}, operation)
        if status != (206 if span else 200):
            raise _NotSimple
        given = headers.get(CHECKSUM, "")
        whole = method == "GET" and not span and given and "-" not in given  # one of parts has their number behind it
        if whole and base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode() != given:
            raise _NotSimple
        return headers, body

    def _answer(self, headers: dict[str, str]) -> dict[str, Any]:
        try:
            written = parsedate_to_datetime(headers["last-modified"])
        except (KeyError, ValueError):
            raise _NotSimple from None
        about = {"HTTPStatusCode": 200, "HTTPHeaders": headers}
        return {"ETag": headers.get("etag", ""), "LastModified": written, "ResponseMetadata": about}

    def _ask(
        self, method: str, path: str, query: Mapping[str, str], span: str | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in small letters) and body of one request. Raises _NotSimple."""
        path = quote(path, safe="/-_.~")
        text = "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
        headers = self._signed(method, path, text) | ({"range": span} if span else {})
        connection_ = self._idle.pop() if self._idle else self._connection()
        try:
            connection_.request(method, f"{path}?{text}" if text else path, headers=headers)
            answer = connection_.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            connection_.close()
            raise _NotSimple from None
        if answer.will_close:
            connection_.close()
        else:
            self._idle.append(connection_)
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._netloc, timeout=SECONDS)

    def _signed(self, method: str, path: str, query: str) -> dict[str, str]:
        """The headers of a request, signed by Signature Version 4 of AWS."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{now[:8]}/{self._address.region}/s3/aws4_request"
        headers = {"host": self._netloc, "x-amz-checksum-mode": "ENABLED", "x-amz-content-sha256": EMPTY}
        headers["x-amz-date"] = now
        names = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        request = "\n".join((method, path, query, lines, names, EMPTY))
        text = "\n".join(("AWS4-HMAC-SHA256", now, scope, hashlib.sha256(request.encode()).hexdigest()))
        signature = hmac.new(self._signing_key(scope), text.encode(), hashlib.sha256).hexdigest()
        credential = f"AWS4-HMAC-SHA256 Credential={self._key}/{scope}"
        return headers | {"authorization": f"{credential}, SignedHeaders={names}, Signature={signature}"}

    def _signing_key(self, scope: str) -> bytes:
        known, key = self._signing
        if known != scope:
            key = f"AWS4{self._secret}".encode()
            for part in scope.split("/"):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
            self._signing = scope, key
        return key


def _small(span: str) -> str:
    """A range that is read here. Raises _NotSimple for another one."""
    match = RANGE.fullmatch(span)
    if match is None or int(match[2]) - int(match[1]) >= LARGEST:
        raise _NotSimple
    return span


def _code(body: bytes) -> str:
    """The code of an error's XML; "" where it has none."""
    try:
        return ElementTree.fromstring(body).findtext("Code", "")
    except ElementTree.ParseError:
        return ""


def _page(body: bytes) -> dict[str, Any]:
    """A listing as botocore has it. Raises ParseError, and ValueError for what is no listing."""
    root = ElementTree.fromstring(body)
    space = root.tag.removesuffix("ListBucketResult")
    if space == root.tag:
        raise ValueError(root.tag)
    decoded = unquote_plus if root.findtext(f"{space}EncodingType") == "url" else str
    rows = [
        {
            "Key": decoded(row.findtext(f"{space}Key", "")),
            "Size": int(row.findtext(f"{space}Size", "")),
            "ETag": row.findtext(f"{space}ETag", ""),
            "LastModified": datetime.fromisoformat(row.findtext(f"{space}LastModified", "")),
        }
        for row in root.iter(f"{space}Contents")
    ]
    page: dict[str, Any] = {"Contents": rows, "IsTruncated": root.findtext(f"{space}IsTruncated") == "true"}
    if token := root.findtext(f"{space}NextContinuationToken"):
        page["NextContinuationToken"] = token
    return page
