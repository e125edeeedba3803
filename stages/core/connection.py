"""The connection to an S3 store through boto3: its client, its patience, and how errors of it are told.

A store that cannot be reached or answers 5xx, 408 or 429 is asked again with growing pauses, for `patience` seconds.
Credentials come from the standard AWS environment or files; nothing here holds or prints them.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import Session
from botocore.utils import parse_timestamp

from stages.core.disk import nearly_full, no_space
from stages.core.errors import ConfigError, InfraError
from stages.core.messages import StoreAddress
from stages.core.secrets_file import take_again
from stages.core.store_errors import Closed, Expired, Unavailable, client_errors, object_name

T = TypeVar("T")
R = TypeVar("R")

PART_BYTES = 16 << 20
"""Part size of multipart transfers, and of the blocks that have a CRC32 each: 16 MiB x 8 threads measured fastest on
one host (docs/measurements.md).
"""
STREAMS = 4
"""Parts of one file on their way at once."""
CHUNK = 1 << 20
"""Bytes that are received, hashed and written at a time."""
THREADS = 8
"""Files on their way at once."""
PATIENCE = 120.0
"""Seconds for which a store that fails is asked again, from the first failure on: it is being restarted, or has too
much to do. MOXIN_STORE_PATIENCE overrides it.
"""
INTERACTIVE_PATIENCE = 5.0
"""The same for a command that somebody sits before."""
RETRIES = 4
"""Requests that the client makes again by itself, with up to 15 s of pauses, before patience begins to count."""
PAUSES = (0.5, 15.0)
"""Seconds before the store is asked again: the first pause and the longest; each is up to twice the one before."""
STORE_FOLDER = "MOXIN_STORE_FOLDER"
"""Where the store that runs on this machine keeps its data: its own answer to a full disk is an HTTP 500 that does not
say so.
"""


def _patience() -> float:
    given = os.environ.get("MOXIN_STORE_PATIENCE")
    try:
        return float(given) if given else PATIENCE
    except ValueError:
        raise ConfigError(f"MOXIN_STORE_PATIENCE = {given!r}: set it to seconds, such as 120") from None


def _client(address: StoreAddress, retries: int = RETRIES) -> Any:
    """A client with the credentials that are there now. Roles, profiles of a machine and processes that hand out
    credentials are asked again by botocore itself, before they expire.
    """
    session = Session()  # a new one: the default session keeps the first credentials that it saw
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    return boto3.Session(botocore_session=session).client(
        "s3",
        endpoint_url=address.endpoint,
        region_name=address.region,
        config=Config(
            # What is sent carries a CRC32, and the ledger SHA-256: to sign it too, as is done without TLS, costs as
            # much as all the rest.
            s3={"addressing_style": "path", "payload_signing_enabled": False},
            retries={"max_attempts": retries, "mode": "standard"},
            # botocore's own names the machine and its software, and makes it anew, letter by letter, for each request
            user_agent="moxin",
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=THREADS * THREADS + 8,  # files at once, and ranges of each
        ),
    )


def _time(text: Any) -> datetime:
    """A time of an answer, in its two usual forms; botocore's own way takes either ten times as long."""
    with suppress(ValueError, TypeError):
        at = datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text)
        if at.tzinfo is not None:
            return at
    return parse_timestamp(text)


class Connection:
    """One bucket (and prefix) of an S3 store, as it is asked. Thread-safe.

    patience: seconds for which a store that fails is asked again. interactive: for a command that somebody sits before:
    less patience, none of the client's own, and a closed port of this machine, where nothing has answered yet, is an
    answer. tell: gets a line when that takes a while.
    """

    def __init__(
        self, address: StoreAddress, client: Any = None, patience: float | None = None, interactive: bool = False
    ) -> None:
        self.address = address
        if patience is None:
            patience = INTERACTIVE_PATIENCE if interactive else _patience()
        self.patience = patience
        self._retries = 0 if interactive else RETRIES
        self._closed_is_down = interactive
        self.tell: Callable[[str], None] = logging.getLogger(__name__).warning
        self.interrupted = threading.Event()
        """Set while transfers in other threads are to end: whoever waits for them has been stopped."""
        self._clock_offset: float | None = None
        self._given, self._client = client is not None, client or _client(address, self._retries)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.where('')})"

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
                with client_errors(self.address, key), self._reason_told(key):
                    done = act()
                self._closed_is_down = False  # it was up: it is being restarted, or has died just now
                return done
            except Unavailable as error:
                if isinstance(error, Closed) and self._closed_is_down:
                    raise
                if isinstance(error, Expired) and not self._given:
                    take_again()
                    # a new one: a file that is written anew is read once by a session; what cannot be read now, being
                    # half written, may be read at the next try
                    with suppress(InfraError, ConfigError), client_errors(self.address, key):
                        self._client = _client(self.address, self._retries)
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
                wait = max(error.after, pause * random.uniform(0.5, 1.0))  # many clients must not come back at once
                if self.interrupted.wait(min(left, wait)):
                    raise
                pause = min(2 * pause, PAUSES[1])

    @contextmanager
    def _reason_told(self, key: str) -> Generator[None]:
        """Why a look at an object (HEAD) is refused: its answer has no text, that of a read has. Credentials that have
        ended are renewed, those that are wrong are not.
        """
        try:
            yield
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in ("400", "403"):
                raise
            try:
                where = {"Bucket": self.address.bucket, "Key": self._full(key)}
                self._client.get_object(**where, Range="bytes=0-0")["Body"].close()
            except ClientError as refusal:
                if refusal.response["ResponseMetadata"].get("HTTPStatusCode") != 416:  # an empty object has no byte 0
                    raise
            raise Unavailable(f"the object store refused to look at {self.where(key)}, and then gave it") from error

    def _full_disk(self, error: Unavailable) -> InfraError | None:
        folder = os.environ.get(STORE_FOLDER)
        return InfraError(f"{error}. {no_space(folder)}") if folder and nearly_full(folder) else None


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
