"""Remote files that can be trusted, through one mechanism; `remote_http` and `remote_s3` are the ways to them.

Every answer promises something: a length, an ETag, on the hub a SHA-256. What comes is held against it. A connection
that breaks is taken up by range where it broke; one that breaks again and again, and an answer that is not what was
promised, is an InfraError that names address, offset and promise. A reader never sees a file that ends early. What is
refused is an InputError with what to do.

Addresses are shown without what is secret in them (`shown`): user, password, signatures, tokens.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from stages.core.errors import InfraError, InputError
from stages.lib.formats import source_credentials
from stages.lib.formats.uris import shown

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each new try when an address cannot be reached, or answers that it is busy; the last failure is told.
"""
BREAKS = 4
"""How often a body may break at one place."""
LONGEST_PAUSE = 300.0
"""Seconds that a server may ask us to wait (Retry-After)."""
NEAR = 1 << 20
"""Bytes ahead that are read over instead of asked for anew."""
BUSY = (408, 425, 429, 500, 502, 503, 504)


@dataclass
class Promise:
    """What an answer says of the whole file."""

    size: int | None = None
    tag: str | None = None
    sha256: str | None = None
    encoding: str = ""
    """HTTP's Content-Encoding, where the server packed the file for the way although we did not ask for it."""


@dataclass
class Answer:
    """A body that begins at `start`."""

    body: Any
    start: int
    promise: Promise = field(default_factory=Promise)


class Source(Protocol):
    """A way to get a file from an offset on. `open` raises `Break` or OSError for what another try may mend, InputError
    for all else.
    """

    def open(self, start: int, tag: str | None) -> Answer: ...


class Break(Exception):
    """The transport failed: another try may succeed. pause: what the server asks for, seconds."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class RemoteFile(io.RawIOBase):
    """A remote file, to be read in order or sought in. Raises InfraError when what was promised does not come."""

    def __init__(self, source: Source, uri: str) -> None:
        self.uri = shown(uri)
        self._source, self.position, self._answer = source, 0, None
        self._promise: Promise | None = None
        self._digest: Any = hashlib.sha256()
        self._failures = 0
        self._connect()

    @property
    def promise(self) -> Promise:
        """What the first answer said."""
        assert self._promise is not None
        return self._promise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.promise.size is not None

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        size = self.promise.size
        if size is None:
            raise io.UnsupportedOperation(f"{self.uri} has no length, and cannot be sought in")
        target = offset + (0, self.position, size)[whence]
        if target != self.position:
            self._digest = None
            if self._answer is not None and self.position < target <= self.position + NEAR:
                self._discard(target - self.position)
            else:
                self._close_body()
            self.position = target
        return target

    def readinto(self, buffer: Any) -> int:
        size = self.promise.size
        while size is None or self.position < size:
            try:
                if self._answer is None:
                    self._connect()
                data = self._read(len(buffer) if size is None else min(len(buffer), size - self.position))
            except Break as broken:
                self._again(broken, BREAKS)
                continue
            if data:
                buffer[: len(data)] = data
                self.position += len(data)
                self._failures = 0
                if self._digest is not None:
                    self._digest.update(data)
                return len(data)
            if size is None:
                return 0  # an ended chunked body: urllib3 has seen its last chunk
            self._again(Break(f"the body ended after {self.position} of {size} bytes"), BREAKS)
        self._compare()
        return 0

    def _read(self, size: int) -> bytes:
        assert self._answer is not None
        with transport():
            return self._answer.body.read(size)

    def _discard(self, size: int) -> None:
        while size and self._answer is not None:
            try:
                data = self._read(min(size, 1 << 16))
            except Break:
                data = b""
            if not data:
                self._close_body()
            size -= len(data)

    def _compare(self) -> None:
        """At the end of a file that was read from its beginning on: its digest."""
        promised = self.promise.sha256
        if (
            self._digest is not None
            and promised
            and self.position == self.promise.size
            and self._digest.hexdigest() != promised
        ):
            raise InfraError(
                f"raw file {self.uri}: its {self.position} bytes have another SHA-256 than the {promised} that was"
                " promised"
            )
        self._digest = None

    def _connect(self) -> None:
        """Ask for the file from the position on, again and again where that may help."""
        while self._answer is None:
            try:
                with transport():
                    answer = self._source.open(self.position, self._promise.tag if self._promise else None)
            except Break as broken:
                self._again(broken, len(PAUSES) + 1)
                continue
            self._promise = self._promise or answer.promise
            self._answer = answer
            self._unchanged(answer.promise)
            if answer.start > self.position:
                raise InfraError(f"raw file {self.uri}: asked for byte {self.position}, {answer.start} came")
            self._skip(self.position - answer.start)

    def _unchanged(self, new: Promise) -> None:
        old = self.promise
        if (new.size, old.size) != (old.size, old.size) or (new.tag and old.tag and new.tag != old.tag):
            raise InfraError(
                f"raw file {self.uri} changed while it was read: {old.size} bytes with tag {old.tag}, then {new.size}"
                f" with {new.tag}"
            )

    def _skip(self, size: int) -> None:
        """Read over what a server sends that knows no ranges."""
        while size and self._answer is not None:
            data = self._read(min(size, 1 << 20))
            if not data:
                raise Break(f"the body ended before byte {self.position}, where it broke the last time")
            size -= len(data)

    def _again(self, broken: Break, most: int) -> None:
        """Wait before another try, or give up."""
        self._close_body()
        self._failures += 1
        if self._failures >= most or self._failures > len(PAUSES):
            promise = f" of {self.promise.size} promised" if self._promise else ""
            raise InfraError(
                f"raw file {self.uri} cannot be read: at byte {self.position}{promise}, after {self._failures} tries:"
                f" {broken}"
            ) from broken
        time.sleep(min(broken.pause if broken.pause is not None else PAUSES[self._failures - 1], LONGEST_PAUSE))

    def _close_body(self) -> None:
        if self._answer is not None:
            self._answer.body.close()
            self._answer = None

    def close(self) -> None:
        self._close_body()
        super().close()


@contextmanager
def transport() -> Iterator[None]:
    """What a connection may raise becomes a `Break`."""
    import http.client

    import urllib3.exceptions
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise InputError(f"no key for s3:// sources: {source_credentials.REMEDY}") from error
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, BotoCoreError, OSError) as error:
        message = re.sub(r"\?\S+", "", str(error))  # an address with its signature
        raise Break(f"{type(error).__name__}: {message.splitlines()[0] if message else ''}") from error
