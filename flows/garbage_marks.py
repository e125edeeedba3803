"""What in the store must stay: everything that a manifest, a name, a live attempt or what cannot be read may need.

A mark is made from records alone: manifests (their trees, and the inputs that they name where those bytes are nowhere
else), node records, tags, leases, and the requests of live attempts. It can be brought up to date at any time, reading
only what changed: a manifest that appeared meanwhile counts from then on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from flows.idle_keys import at_work
from stages.core.ledger import Ledger, attempt_prefix
from stages.core.messages import InputRef, Lease, StageRequest, StageResult
from stages.core.records import DamagedRecord, LeaseRecord
from stages.core.store import Stored
from stages.core.store_errors import Damaged

THREADS = 16
LATELY = 3600.0
"""Seconds in which a list has surely come to what was written: no store is known that takes longer than some."""
NOTHING: Mapping[str, Lease] = {}
T = TypeVar("T")


@dataclass
class Published:
    """What a mark keeps of a manifest."""

    folder: str
    """Where the attempt that made it has its objects, ending in a slash: all of it stays."""
    epoch: int
    stage: str
    node: str
    written: float
    wall_seconds: float
    digests: dict[str, str]
    inputs: frozenset[str]
    """Keys of the results that it was made from."""
    files: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """Objects elsewhere that it refers to, by the folder of their key (`folder_of`)."""
    replaced: set[str] = field(default_factory=set[str])
    """Inputs whose key has another result now, or none: the bytes that this was made from may be nowhere else."""


class Marks:
    """The marks of a ledger, as of the last `refresh`."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.published: dict[str, Published] = {}
        self.unreadable: set[str] = set()
        """Keys whose manifest is there and cannot be read: nothing of theirs is touched."""
        self.named: set[str] = set()
        """Keys that a node record or a tag points to."""
        self.names_unreadable = False
        self.live: dict[str, int] = {}
        """Keys that somebody may be at work on, with the epoch; -1: the lease cannot be read."""
        self.blind: set[str] = set()
        """Of `live`, those whose request is not in the store: what they read is not known."""
        self._etags: dict[str, str] = {}
        self._leases: dict[str, tuple[str, LeaseRecord | None]] = {}
        self._requested: dict[str, frozenset[str]] = {}
        self._worked_on: list[str] = []
        self._emptied: dict[str, int] = {}
        self._referring: dict[str, set[str]] = {}
        """Keys of manifests that refer to objects in a folder that is not theirs, by the folder."""
        self._made_from: dict[str, set[str]] = {}
        """Keys of manifests that were made from what a key held before, by that key (`Published.replaced`)."""

    # --- asking -------------------------------------------------------------------------------------------------

    def keeps(self, folder: str) -> set[str]:
        """Objects of a key's folder (`objects/<stage>/<key>/`, `work/<stage>/<key>/`) that something refers to from
        elsewhere.
        """
        return set[str]().union(*(self.published[key].files[folder] for key in self._referring.get(folder, ())))

    def reads(self, key: str) -> bool:
        """Whether an attempt at work reads a key, or a result was made from what the key held before."""
        return bool(self._made_from.get(key)) or any(key in inputs for inputs in self._requested.values())

    def needed(self, keep: Iterable[str] = ()) -> set[str]:
        """Keys that names point to, that live attempts work on or read, and `keep`, with all that those came from."""
        keys: set[str] = set()
        queue = [*self.named, *self.live, *keep, *(key for inputs in self._requested.values() for key in inputs)]
        while queue:
            key = queue.pop()
            if key not in keys:
                keys.add(key)
                queue.extend(self.published[key].inputs if key in self.published else ())
        return keys

    # --- reading ------------------------------------------------------------------------------------------------

    def emptied(self, lease: Lease) -> None:
        """Whoever holds this lease has removed its key's manifest: there is none until somebody takes the key."""
        self._emptied[lease.key] = lease.epoch

    def refresh(self, only: Iterable[str] | None = None, held: Mapping[str, Lease] = NOTHING) -> None:
        """Read what has changed since the last time. only: leases and manifests of these keys, and nothing else. held:
        leases that whoever asks has taken: nobody works on their keys, and what those have is asked for by name.

        Leases come before manifests: an attempt publishes, and then gives its lease back. Whoever is not at work here
        has its manifest among those that are read next.
        """
        keys = None if only is None else list(only)
        self._read_leases(self._rows("leases/", keys), keys, held)
        if keys is None:
            self._read_requests()
            self._read_names()
        manifests = self._rows("manifests/", keys)
        if keys is None:  # of keys that were worked on lately by their names: a list may be late
            manifests |= self._rows("manifests/", list({*self._worked_on, *held}))
        self._read_manifests(manifests, keys)

    def _rows(self, prefix: str, keys: list[str] | None) -> dict[str, Stored]:
        """Records by key: all that are listed, or some, asked for by their names, since a list may be late."""
        if keys is None:
            rows = [row for row in self.ledger.store.list(prefix) if row.key.endswith(".json")]
        else:
            asked = self._each(self.ledger.store.stored, [f"{prefix}{key}.json" for key in keys])
            rows = [row for row in asked if row is not None]
        return {row.key.rsplit("/", 1)[1].removesuffix(".json"): row for row in rows}

    def _read_manifests(self, rows: dict[str, Stored], keys: list[str] | None) -> None:
        changed = [key for key, row in rows.items() if self._etags.get(key) != row.etag]
        gone = [key for key in (self._etags if keys is None else keys) if key not in rows]
        for key in [*gone, *changed]:
            self._etags.pop(key, None)
            self._forget(key)
            self.unreadable.discard(key)
        results = dict(zip(changed, self._each(self._manifest, changed), strict=True))
        for key, result in results.items():
            self._etags[key] = rows[key].etag
            one = self._read(result, rows[key]) if isinstance(result, StageResult) else None
            if one is not None:
                self.published[key] = one
                for folder in one.files:
                    self._referring.setdefault(folder, set()).add(key)
            elif result is not None:
                self.unreadable.add(key)
        for key, result in results.items():  # once all current results are known: are an input's bytes elsewhere?
            for refs in result.inputs.values() if isinstance(result, StageResult) and key in self.published else ():
                replaced = {ref.key for ref in refs if not self._held_elsewhere(ref)}
                self.published[key].replaced |= replaced
                for other in replaced:
                    self._made_from.setdefault(other, set()).add(key)

    def _forget(self, key: str) -> None:
        """Take a manifest out of the marks."""
        if one := self.published.pop(key, None):
            for folder in one.files:
                self._referring[folder].discard(key)
            for other in one.replaced:
                self._made_from[other].discard(key)

    def _manifest(self, key: str) -> StageResult | DamagedRecord | None:
        try:
            stored = self.ledger.manifest(key)
        except DamagedRecord as error:
            return error
        return stored[0] if stored else None

    def _read(self, result: StageResult, row: Stored) -> Published | None:
        """A manifest and its trees; None: a page is lost or damaged, so that what it refers to is not known."""
        one = Published(
            attempt_prefix(result),
            result.attempt.epoch,
            result.stage,
            result.node,
            row.written,
            result.attempt.wall_seconds,
            {port: manifest.digest for port, manifest in result.outputs.items()},
            frozenset(ref.key for refs in result.inputs.values() for ref in refs),
        )
        try:
            for manifest in result.outputs.values():
                self._note(one, self.ledger.index_objects(manifest))
                self._note(one, (entry.object for entry in self.ledger.entries(manifest)))
        except Damaged:
            return None
        self._note(one, [result.metrics_object] if result.metrics_object else [])
        return one

    def _held_elsewhere(self, ref: InputRef) -> bool:
        """Whether the present result of an input's key has the same content."""
        now = self.published.get(ref.key)
        return now is not None and now.digests.get(ref.port) == ref.manifest.digest

    def _note(self, one: Published, objects: Iterable[str]) -> None:
        for name in objects:
            if not name.startswith(one.folder):
                one.files.setdefault(folder_of(name), set()).add(name)

    def _read_names(self) -> None:
        """Node records of all profiles, and tags: each names a key. One that cannot be read may name any."""
        rows = [row.key for prefix in ("nodes/", "tags/") for row in self.ledger.store.list(prefix)]
        self.named, self.names_unreadable = set(), False
        for body in self._each(self.ledger.store.get, rows):
            try:
                if body is not None:
                    self.named.add(str(json.loads(body[0])["key"]))
            except (ValueError, KeyError, TypeError):
                self.names_unreadable = True

    def _read_leases(self, rows: dict[str, Stored], keys: list[str] | None, held: Mapping[str, Lease]) -> None:
        changed = [key for key, row in rows.items() if self._leases.get(key, ("",))[0] != row.etag]
        for key, record in zip(changed, self._each(self._lease, changed), strict=True):
            self._leases[key] = (rows[key].etag, record)
        now = self.ledger.store.now()
        self.live = {key: epoch for key, epoch in self.live.items() if key not in keys} if keys else {}
        lately = [key for key, row in rows.items() if now - row.written < LATELY and key not in held]
        self._worked_on = [key for key in lately if self._epoch(key) != self._emptied.get(key)]
        for key, row in rows.items():
            record = self._leases[key][1]
            if key in held:
                continue
            if record is not None:
                record = record.model_copy(update={"age": now - row.written})
            if keys is None and record is not None and record.holder and not record.live:
                record = self._lease(key)  # it may have been renewed since: a list may be late
            if record is None:
                self.live[key] = -1
            elif at_work(self.ledger, record):
                self.live[key] = record.epoch

    def _epoch(self, key: str) -> int:
        """The last one that a lease was given for; -1: it cannot be read."""
        record = self._leases[key][1]
        return record.epoch if record else -1

    def _lease(self, key: str) -> LeaseRecord | None:
        try:
            stored = self.ledger.lease(key)
        except DamagedRecord:
            return None
        return stored[0] if stored else LeaseRecord(key=key, epoch=0, holder="", expires_at=0)

    def _read_requests(self) -> None:
        """Inputs of attempts that are at work: also those that a later result has replaced."""
        requests = zip(self.live, self._each(self._request, list(self.live.items())), strict=True)
        self._requested = {key: one for key, one in requests if one is not None}
        self.blind = self.live.keys() - self._requested.keys()

    def _request(self, attempt: tuple[str, int]) -> frozenset[str] | None:
        stored = self.ledger.store.get(f"requests/{attempt[0]}/{attempt[1]:06d}.json")
        try:
            request = StageRequest.model_validate_json(stored[0]) if stored else None
        except ValidationError:
            return None
        if request is None:
            return None
        return frozenset(ref.key for refs in request.inputs.values() for ref in refs)

    def _each(self, read: Callable[[Any], T], items: list[Any]) -> list[T]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(read, items))


def folder_of(name: str) -> str:
    """The folder of the key that an object belongs to: `<plane>/<stage>/<key>/`."""
    return "/".join(name.split("/", 3)[:3]) + "/"
