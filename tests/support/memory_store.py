"""An S3 store in memory, of which every request waits until somebody says what becomes of it, with clocks that anybody
can turn: for programs that are interleaved request by request, in one thread and without waiting.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any
from unittest import mock

import greenlet
from botocore.exceptions import ClientError, ConnectionClosedError

from stages.core.messages import StoreAddress
from stages.core.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
FATES = ("right", "dropped", "lost", "late", "twice")
""""dropped": the store never hears of it; "lost": it does what it is asked, and its answer does not arrive; "late": the
caller gives up, and the store does it some time afterwards; "twice": now, and once more afterwards.
"""


@dataclass
class Machine:
    """A process on a machine of its own, and that machine's clocks."""

    name: str
    off: float = 0.0
    """Seconds by which its wall clock is wrong."""
    alive: bool = True


@dataclass
class Actor:
    """A program that asks the store, stopped before each of its requests."""

    kind: str
    machine: Machine
    greenlet: Any
    forced: bool = False
    waits_for: str = ""
    since: float = 0.0
    """When it was last stopped, by the true clock."""
    marks: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class Row:
    body: bytes
    written: float

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.body, usedforsecurity=False).hexdigest()}"'


class World:
    """The store's objects, the true time, the programs, and requests that are still on their way."""

    def __init__(self, dated: bool = True, late_lists: float = 0.0) -> None:
        self.rows: dict[str, Row] = {}
        self.late_lists = late_lists
        """How many seconds ago what a list shows was so: the store that is "eventually consistent"."""
        self.past: list[tuple[float, str, Row | None]] = []
        """What each change has put under a name, and when; None: it was deleted."""
        self.seconds = 0.0
        self.dated = dated
        """Whether answers have a Date."""
        self.actors: list[Actor] = []
        self.late: list[tuple[float, Callable[[], Any]]] = []
        self.current: Actor | None = None
        self.watch: Callable[[str, str, bytes | None], None] = lambda act, key, body: None
        """Told of each change, once it has been made: "put" or "delete", the object, its bytes."""
        self._main = greenlet.getcurrent()

    # --- programs ---------------------------------------------------------------------------------------------

    def start(self, kind: str, program: Callable[[Actor], None], machine: Machine, **marks: Any) -> Actor:
        """A program, stopped before its first request."""
        actor = Actor(kind, machine, None, marks.pop("forced", False), marks=marks)
        actor.greenlet = greenlet.greenlet(lambda _: program(actor), self._main)
        self.actors.append(actor)
        self._switch(actor, "right")
        return actor

    def step(self, actor: Actor, fate: str) -> None:
        """Let a program's next request have its fate, and go on to the one after."""
        if not actor.greenlet.dead and actor.machine.alive:
            self._switch(actor, fate)

    def crash(self, actor: Actor) -> None:
        """A process that is gone: it never gets its answer."""
        actor.machine.alive = False

    def running(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.machine.alive and not actor.greenlet.dead]

    def pause(self, what: str) -> str:
        """Called by a program before a request: wait for what becomes of it."""
        actor = self.current
        if actor is None or greenlet.getcurrent() is self._main:
            return "right"
        actor.waits_for, actor.since = what, self.seconds
        fate = self._main.switch()
        return str(fate)

    def _switch(self, actor: Actor, fate: str) -> None:
        before, self.current = self.current, actor
        try:
            actor.greenlet.switch(fate)
        finally:
            self.current = before

    # --- objects ----------------------------------------------------------------------------------------------

    def change(self, key: str, row: Row | None) -> None:
        """Put or delete an object."""
        if row is None:
            del self.rows[key]
        else:
            self.rows[key] = row
        self.past.append((self.seconds, key, row))

    def listed(self) -> dict[str, Row]:
        """The objects as a list has them."""
        if not self.late_lists:
            return self.rows
        shown: dict[str, Row | None] = {}
        for changed, key, row in self.past:
            if changed <= self.seconds - self.late_lists:
                shown[key] = row
        return {key: row for key, row in shown.items() if row is not None}

    # --- time -------------------------------------------------------------------------------------------------

    def deliver(self, number: int) -> None:
        """Something that was on its way arrives now."""
        if self.late:
            _, act = self.late.pop(number % len(self.late))
            with contextlib.suppress(ClientError):
                act()

    def wait(self, seconds: float, longest: float) -> None:
        """Time passes. What has been on its way for `longest` seconds arrives before."""
        while any(self.seconds + seconds - begun > longest for begun, _ in self.late):
            self.deliver(0)
        self.seconds += seconds

    def clock(self) -> Any:
        """What stands for the module `time` in the code under test."""
        here = self.current.machine if self.current else Machine("nobody")
        return SimpleNamespace(
            time=lambda: (START + timedelta(seconds=self.seconds + here.off)).timestamp(),
            monotonic=lambda: 1000.0 + self.seconds,
        )

    def store(self) -> Store:
        return Store(StoreAddress(bucket="b", endpoint="http://memory"), MemoryClient(self), patience=30.0)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Time, process numbers and threads of the code under test are this world's."""
        clock = SimpleNamespace(time=lambda: self.clock().time(), monotonic=lambda: self.clock().monotonic())
        with contextlib.ExitStack() as stack:
            for name, value in {
                "stages.core.leases.time": clock,
                "stages.core.store.time": clock,
                "stages.core.connection.time": clock,
                "stages.core.connection.PAUSES": (0.0, 0.0),
                "stages.core.leases.host_identity": lambda: "one host",
                "stages.core.records.host_identity": lambda: "one host",
                "stages.core.leases.process_identity": self._process,
                "stages.core.records.process_alive": self._alive,
                "flows.garbage_marks.ThreadPoolExecutor": OneThread,
            }.items():
                stack.enter_context(mock.patch(name, value))
            yield

    def _process(self) -> str:
        return self.current.machine.name if self.current else "nobody"

    def _alive(self, name: str) -> bool:
        """A process of a machine of its own is trusted; "here:" are those that everybody can see."""
        return not name.startswith("here:") or any(a.machine.name == name and a.machine.alive for a in self.actors)


class OneThread:
    """As ThreadPoolExecutor, one thing after the other."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> OneThread:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[..., Any], *items: Any) -> list[Any]:
        return list(map(function, *items))

    def submit(self, function: Callable[..., Any], *items: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*items))
        return done


def _error(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Operation")


class MemoryClient:
    """As boto3's client, for what the ledger asks of it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _ask(self, what: str, act: Callable[[], Any], changes: bool = False) -> Any:
        fate = self._world.pause(what)
        if fate == "dropped":
            raise ConnectionClosedError(endpoint_url="http://memory")
        if changes and fate == "late":
            self._world.late.append((self._world.seconds, act))
            raise ConnectionClosedError(endpoint_url="http://memory")
        answer = act()
        if changes and fate == "twice":
            self._world.late.append((self._world.seconds, act))
        if fate == "lost":
            raise ConnectionClosedError(endpoint_url="http://memory")
        return answer

    def _headers(self) -> dict[str, Any]:
        date = {"date": format_datetime(self._now(self._world.seconds), usegmt=True)} if self._world.dated else {}
        return {"HTTPStatusCode": 200, "HTTPHeaders": date}

    def _now(self, seconds: float) -> datetime:
        return (START + timedelta(seconds=seconds)).replace(microsecond=0)

    def _there(self, key: str) -> Row:
        row = self._world.rows.get(key)
        if row is None:
            raise _error("NoSuchKey", 404)
        return row

    def get_object(self, Bucket: str, Key: str) -> Any:
        def act() -> Any:
            row = self._there(Key)
            return {
                "Body": io.BytesIO(row.body),
                "ETag": row.etag,
                "LastModified": self._now(row.written),
                "ResponseMetadata": self._headers(),
            }

        return self._ask(f"GET {Key}", act)

    def head_object(self, Bucket: str, Key: str) -> Any:
        def act() -> Any:
            row = self._there(Key)
            return {"LastModified": self._now(row.written), "ContentLength": len(row.body), "ETag": row.etag}

        return self._ask(f"HEAD {Key}", act)

    def put_object(self, Bucket: str, Key: str, Body: bytes, **given: Any) -> Any:
        def act() -> Any:
            row = self._world.rows.get(Key)
            if "IfNoneMatch" in given and row is not None:
                raise _error("PreconditionFailed", 412)
            if "IfMatch" in given and (row is None or row.etag != given["IfMatch"]):
                raise _error("PreconditionFailed", 412)
            self._world.change(Key, Row(Body, self._world.seconds))
            self._world.watch("put", Key, Body)
            return {"ETag": self._world.rows[Key].etag}

        return self._ask(f"PUT {Key}", act, changes=True)

    def delete_object(self, Bucket: str, Key: str) -> Any:
        return self._ask(f"DELETE {Key}", lambda: self._gone([Key]), changes=True)

    def delete_objects(self, Bucket: str, Delete: Any) -> Any:
        keys = [row["Key"] for row in Delete["Objects"]]
        return self._ask(f"DELETE {keys[0]}", lambda: self._gone(keys), changes=True)

    def _gone(self, keys: list[str]) -> dict[str, Any]:
        for key in keys:
            if key in self._world.rows:
                self._world.change(key, None)
                self._world.watch("delete", key, None)
        return {}

    def list_objects_v2(self, Bucket: str, Prefix: str) -> Any:
        def act() -> Any:
            rows = sorted(one for one in self._world.listed().items() if one[0].startswith(Prefix))
            return {
                "Contents": [
                    {"Key": name, "Size": len(row.body), "ETag": row.etag, "LastModified": self._now(row.written)}
                    for name, row in rows
                ]
            }

        return self._ask(f"LIST {Prefix}", act)

    def list_multipart_uploads(self, Bucket: str, Prefix: str) -> Any:
        return {}
