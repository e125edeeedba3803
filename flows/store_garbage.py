"""What nobody needs in the object store: found from listings and marks, and removed key by key.

First everything is listed, then the marks are read (`flows.garbage_marks`): what is published while this looks is
marked. Before anything of a key is removed, its lease is taken, which fences off every earlier attempt, and the marks
are read again: a manifest that appeared in between wins. What is younger than `Limits.min_age` by the store's own clock
stays. Nothing that a manifest which can be read refers to is removed, unless `Limits.results_after` says so.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from flows.garbage_marks import Marks, Published, folder_of
from flows.idle_keys import exclusive
from stages.core import store_uploads
from stages.core.checkpoints import ROWS
from stages.core.leases import LeaseLost
from stages.core.ledger import DIGESTS, Ledger
from stages.core.messages import Lease
from stages.core.store import Stored

HOUR, DAY = 3600.0, 86_400.0
LEASE = 600.0
"""Seconds for which a key is held while its objects are removed; renewed with each batch."""
BATCH = 1000
HOLDER = "moxin gc"
PLANES = ("objects/", "work/")
UNREADABLE = "the manifest of its key cannot be read: 'moxin repair' says more"

ATTEMPTS, REPLACED, TASKS, UNFINISHED = "failed attempts", "replaced results", "task files", "unfinished work"
UNCOMMITTED, CHECKPOINTS, REQUESTS = "uncommitted checkpoints", "checkpoints of results", "requests"
UPLOADS, PROBES, DAMAGED, RESULTS = "unfinished uploads", "probe objects", "damaged objects", "unreferenced results"
REHEARSALS = "rehearsals"
"""And the folder that they have, below the store's prefix."""


@dataclass(frozen=True)
class Limits:
    """What may go. The defaults remove nothing that anybody could miss."""

    min_age: float = HOUR
    """Seconds: what was written later stays."""
    results_after: float | None = None
    """Seconds after which a result goes that no name points to, and no such result was made from; None: never."""
    work_after: float | None = None
    """Seconds without a write after which what an unpublished key could go on from goes; None: never."""
    uploads_after: float = HOUR
    """Seconds after which an upload in parts that nobody completed goes."""
    rehearsals_after: float | None = None
    """Seconds without a write after which all of a rehearsal goes; None: never."""
    damaged: bool = False
    """Whether what `moxin repair` set aside goes."""


@dataclass(frozen=True)
class Garbage:
    """One thing that goes, or that stays although no result needs it."""

    kind: str
    where: str
    objects: int
    bytes: int
    key: str = ""
    epoch: int = 0
    kept: str = ""
    """Why it stays; "": it goes."""
    remove: Callable[[], tuple[int, int]] = lambda: (0, 0)
    """Remove it; how many objects and bytes went. None of a key on which somebody works by now."""


Judge = Callable[..., "tuple[str, str] | None"]


@dataclass
class Group:
    """The objects below one folder."""

    objects: int = 0
    bytes: int = 0
    newest: float = 0.0
    epoch: int = 0
    committed: bool = False
    """Whether the marker of a checkpoint, or the digests of a result, are there."""

    def add(self, row: Stored) -> None:
        self.objects, self.bytes, self.newest = self.objects + 1, self.bytes + row.size, max(self.newest, row.written)


class StoreGarbage:
    """What of a ledger nobody needs. tell: gets the number of objects looked at, now and then."""

    def __init__(self, ledger: Ledger, limits: Limits, tell: Callable[[int], None] = lambda count: None) -> None:
        self.ledger, self.limits, self.marks = ledger, limits, Marks(ledger)
        self._tell, self._seen, self._now = tell, 0, 0.0
        self._late_lists = False

    def find(self) -> Iterator[Garbage]:
        """Everything that goes, and what stays although no result needs it."""
        self._now = self.ledger.store.now()
        objects, work = self._groups("objects/", 4), self._groups("work/", 3)
        checkpoints, requests = self._groups("checkpoints/", 3), self._groups("requests/", 3)
        alone = {kind: self._groups(prefix, 1) for kind, prefix in ((PROBES, "probe/"), (DAMAGED, "damaged/"))}
        uploads = list(store_uploads.unfinished(self.ledger.store))
        self.marks.refresh()
        yield from self._results(objects, work)
        for folder, group in objects.items():
            yield from self._item(folder, group, self._attempt)
        for folder, group in work.items():
            yield from self._item(folder, group, self._tasks)
        for folder, group in checkpoints.items():
            yield from self._item(folder, group, self._checkpoint)
        for folder, group in requests.items():
            yield from self._item(folder, group, self._request)
        for kind, groups in alone.items():
            for folder, group in groups.items():
                if kind == PROBES and self._young(group.newest):
                    continue
                kept = "what was set aside stays; --also damaged removes it"
                kept = kept if kind == DAMAGED and not self.limits.damaged else ""
                yield Garbage(kind, folder, group.objects, group.bytes, kept=kept, remove=partial(self._below, folder))
        yield from self._rehearsals()
        yield from self._uploads(uploads)

    def _rehearsals(self) -> Iterator[Garbage]:
        """rehearsals/<profile>-<level>/: each is a whole ledger that nothing outside it refers to."""
        for folder, group in self._groups(f"{REHEARSALS}/", 2).items():
            after = self.limits.rehearsals_after
            kept = "a rehearsal stays, and the plan goes by it; --also rehearsals=DAYS removes it"
            if after is not None:
                young = self._young(group.newest) or self._younger(group.newest, after)
                kept = "it is younger than that, or somebody may be at work on it" if young else ""
            remove = partial(self._below, folder)
            yield Garbage(REHEARSALS, folder, group.objects, group.bytes, kept=kept, remove=remove)

    def checkpoints(self) -> list[Garbage]:
        """Checkpoints of published keys alone, without reading anything of other keys: cheap enough for every start."""
        self._now = self.ledger.store.now()
        groups = self._groups("checkpoints/", 3)
        self.marks.refresh({folder.split("/")[1] for folder in groups})
        items = (item for folder, group in groups.items() for item in self._item(folder, group, self._checkpoint))
        return [item for item in items if item.kind == CHECKPOINTS and not item.kept]

    # --- judging: the kind, and why it stays ("": it goes); None: it is needed, or in use. held: a key whose lease this
    # process has taken itself ---

    def _attempt(self, folder: str, group: Group, held: str = "") -> tuple[str, str] | None:
        """objects/<stage>/<key>/<epoch>/"""
        key = folder.split("/")[2]
        published = self.marks.published.get(key)
        if (published and published.folder == folder) or (key in self.marks.live and key != held):
            return None
        if key in self.marks.unreadable:
            return ATTEMPTS, UNREADABLE
        if published is None:
            return ATTEMPTS, ""
        if self._young(published.written):  # whoever reads the one before may have been started just now
            return None
        if self.marks.reads(key):
            return REPLACED, "an attempt at work may read it, or a result was made from it that has no newer input"
        blind = self.marks.blind - {held}
        kind = REPLACED if group.committed else ATTEMPTS  # by its digests; results of before have none
        return kind, "an attempt is at work whose inputs are not known" if blind else ""

    def _tasks(self, folder: str, group: Group, held: str = "") -> tuple[str, str] | None:
        """work/<stage>/<key>/"""
        key = folder.split("/")[2]
        if key in self.marks.live and key != held:
            return None
        return self._left(TASKS, key, group, self.marks.published.get(key), group.newest)

    def _checkpoint(self, folder: str, group: Group, held: str = "") -> tuple[str, str] | None:
        """checkpoints/<key>/<step>/"""
        key = folder.split("/")[1]
        if key in self.marks.live and key != held:
            return None
        published = self.marks.published.get(key)
        if (
            not group.committed
            and self.ledger.store.stored(f"{folder}COMMIT.json") is None  # by its name: a list may be late
            and not (published and published.epoch >= group.epoch)
            and key not in self.marks.unreadable
        ):
            return UNCOMMITTED, ""
        newer = published is not None and published.epoch < group.epoch
        return self._left(CHECKPOINTS, key, group, None if newer else published, 0.0)

    def _left(
        self, kind: str, key: str, group: Group, published: Published | None, newest: float
    ) -> tuple[str, str] | None:
        """What an attempt left that another could go on from: needed no more once the result is there."""
        if key in self.marks.unreadable:
            return kind, UNREADABLE
        if published is not None and newest <= published.written:
            return kind, ""
        if self.limits.work_after is not None and not self._younger(group.newest, self.limits.work_after):
            return UNFINISHED, ""
        return UNFINISHED, "the next attempt goes on from it; --also unfinished=DAYS removes it"

    def _request(self, folder: str, group: Group, held: str = "") -> tuple[str, str] | None:
        """requests/<key>/<epoch>.json"""
        _, key, name = folder.rstrip("/").split("/")
        live = self.marks.live.get(key)
        return None if live == -1 or name == f"{live or 0:06d}.json" else (REQUESTS, "")

    # --- finding ------------------------------------------------------------------------------------------------

    def _young(self, written: float) -> bool:
        """Whether something was written so lately that it stays."""
        return self._younger(written, self.limits.min_age)

    def _younger(self, written: float, limit: float) -> bool:
        """Whether something was written less than `limit` seconds ago. Nothing is younger than 0 s: the store's clock
        is right to a second or two, so that what is new may seem to come from later.
        """
        return limit > 0 and self._now - written < limit

    def _groups(self, prefix: str, depth: int) -> dict[str, Group]:
        """Objects by the first `depth` parts of their names."""
        groups: dict[str, Group] = {}
        for row in self.ledger.store.list(prefix):
            parts = row.key.split("/")
            group = groups.setdefault("/".join(parts[:depth]) + "/", Group())
            group.add(row)
            group.committed |= parts[-1] == (DIGESTS if prefix.startswith("objects/") else "COMMIT.json")
            group.committed |= prefix.startswith("checkpoints/") and parts[2] == ROWS  # checkpoints refer to them
            if prefix.startswith("checkpoints/"):
                group.epoch = max(group.epoch, int(parts[3]) if parts[3].isdigit() else 0)
            self._seen += 1
            if self._seen % 10_000 == 0:
                self._tell(self._seen)
        if prefix.startswith("checkpoints/"):  # rows live as long as the checkpoints that refer to them
            newest: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
            for folder, group in groups.items():
                time, epoch = newest[folder.split("/")[1]]
                newest[folder.split("/")[1]] = max(time, group.newest), max(epoch, group.epoch)
            for folder, group in groups.items():
                if folder.endswith(f"/{ROWS}/"):
                    group.newest, group.epoch = newest[folder.split("/")[1]]
        return groups

    def _item(self, folder: str, group: Group, judge: Judge) -> Iterator[Garbage]:
        verdict = judge(folder, group)
        if verdict is None or self._young(group.newest):
            return
        parts = folder.rstrip("/").split("/")
        key, rest = (parts[2], parts[3:]) if folder.startswith(PLANES) else (parts[1], parts[2:])
        epoch = group.epoch or (int(rest[0]) if parts[0] == "objects" and rest[0].isdigit() else 0)
        if kept := self._referred(folder):  # in part: count what is left
            group = Group(newest=group.newest, epoch=group.epoch, committed=group.committed)
            for row in self.ledger.store.list(folder):
                if row.key not in kept:
                    group.add(row)
            if not group.objects:
                return
        remove = partial(self._sweep, folder, key, judge)
        if judge == self._request:
            remove = partial(self._unrequest, folder, group)
        yield Garbage(verdict[0], folder, group.objects, group.bytes, key, epoch, verdict[1], remove)

    def _referred(self, folder: str) -> set[str]:
        """Objects below a folder that something refers to from elsewhere."""
        if not folder.startswith(PLANES):
            return set()
        return {name for name in self.marks.keeps(folder_of(folder)) if name.startswith(folder)}

    def _results(self, objects: dict[str, Group], work: dict[str, Group]) -> Iterator[Garbage]:
        """Results that no name points to, and that no such result was made from."""
        after = self.limits.results_after
        self._late_lists = after is not None and self._lists_are_late()
        for key in self._unwanted():
            one = self.marks.published[key]
            groups = [objects.get(one.folder), work.get(f"work/{one.stage}/{key}/")]
            parts = [group for group in groups if group]
            kept = ""
            if after is None:
                kept = "no name points to it; --also results=DAYS removes it"
            elif self._late_lists:
                kept = "the store's lists are late: a name that was given just now may not be among them"
            elif self.marks.names_unreadable or self.marks.blind:
                kept = "a node record, or what an attempt at work reads, is not known"
            count, size = 1 + sum(group.objects for group in parts), sum(group.bytes for group in parts)
            yield Garbage(RESULTS, one.folder, count, size, key, one.epoch, kept, partial(self._drop_result, key))

    def _lists_are_late(self) -> bool:
        """Whether a list lacks what was written just now. Names cannot be asked for one by one: anybody gives them."""
        store, name = self.ledger.store, f"probe/{uuid.uuid4().hex}"
        store.put(name, b"")
        late = not any(True for _ in store.list(name))
        store.delete([name])
        return late

    def _unwanted(self) -> list[str]:
        """Keys of results that nothing needs, oldest first."""
        after = max(self.limits.min_age, self.limits.results_after or 0.0)
        young = [key for key, one in self.marks.published.items() if self._younger(one.written, after)]
        needed = self.marks.needed(young)
        rest = [key for key in self.marks.published if key not in needed]
        return sorted(rest, key=lambda key: self.marks.published[key].written)

    def _uploads(self, uploads: list[store_uploads.Upload]) -> Iterator[Garbage]:
        for upload in uploads:
            parts = upload.key.split("/")
            key = parts[2] if upload.key.startswith(PLANES) else parts[1] if len(parts) > 1 else ""
            after = max(self.limits.min_age, self.limits.uploads_after)
            if self._younger(upload.started, after) or key in self.marks.live:
                continue
            size = store_uploads.stored_bytes(self.ledger.store, upload)
            yield Garbage(UPLOADS, upload.key, 1, size, key, remove=partial(self._abort, upload, key, size))

    # --- removing -----------------------------------------------------------------------------------------------

    def _sweep(self, folder: str, key: str, judge: Judge) -> tuple[int, int]:
        """Remove a folder of a key, all but what is referred to, or younger than the limit."""
        with exclusive(self.ledger, key, HOLDER, LEASE) as lease:
            if lease is None:
                return 0, 0
            replaced = folder.startswith("objects/") and key in self.marks.published
            self._refresh(None if replaced else [key])
            group = self._groups(folder, 3 if folder.startswith(("checkpoints/", "work/")) else 4).get(folder)
            if group is None or (verdict := judge(folder, group, key)) is None or verdict[1]:
                return 0, 0
            # since it was listed; its attempt may be about to publish it, and a list may be too late for its digests
            digests = self.ledger.store.stored(folder + DIGESTS) if folder.startswith("objects/") else None
            if self._young(max(group.newest, digests.written if digests else 0.0)):
                return 0, 0
            return self._delete(folder, self._referred(folder), lease)

    def _drop_result(self, key: str) -> tuple[int, int]:
        """Remove a result: its manifest first, so that nobody finds it any more."""
        with exclusive(self.ledger, key, HOLDER, LEASE) as lease:
            if lease is None:
                return 0, 0
            self._refresh()
            if key not in self._unwanted_but(key) or self.marks.names_unreadable or self.marks.blind - {key}:
                return 0, 0
            one = self.marks.published[key]
            self.ledger.store.delete([f"manifests/{key}.json"])
            self.marks.refresh()
            count = size = 0
            for folder in (one.folder, f"work/{one.stage}/{key}/"):
                more = self._delete(folder, self._referred(folder), lease)
                count, size = count + more[0], size + more[1]
            return count + 1, size

    def _unwanted_but(self, key: str) -> list[str]:
        """As `_unwanted`, where this process holds the lease of a key itself."""
        self.marks.live.pop(key, None)
        return self._unwanted()

    def _refresh(self, only: list[str] | None = None) -> None:
        """Marks as of now. only: where nothing but a key's own manifest can refer to what goes: what an attempt left
        that was never published, no other attempt was ever given to read.
        """
        self._now = self.ledger.store.now()
        self.marks.refresh(only)

    def _delete(self, folder: str, kept: set[str], lease: Lease) -> tuple[int, int]:
        """Markers go first, in a call of their own: what is half removed must not look whole."""
        count = size = 0
        rows = [row for row in self.ledger.store.list(folder) if row.key not in kept]
        rows = [row for row in rows if not self._young(row.written)]
        rows.sort(key=lambda row: not row.key.endswith("/COMMIT.json"))
        markers = sum(row.key.endswith("/COMMIT.json") for row in rows)
        for start in [0, *range(markers, len(rows), BATCH)] if markers else range(0, len(rows), BATCH):
            batch = rows[start : markers if start < markers else start + BATCH]
            try:
                self.ledger.renew(lease, LEASE)
            except LeaseLost:
                break
            self.ledger.store.delete(row.key for row in batch)
            count, size = count + len(batch), size + sum(row.size for row in batch)
        return count, size

    def _unrequest(self, folder: str, group: Group) -> tuple[int, int]:
        self.marks.refresh([folder.split("/")[1]])
        if self._request(folder, group) is None:
            return 0, 0
        return self.ledger.store.delete([folder.rstrip("/")]), group.bytes

    def _below(self, prefix: str) -> tuple[int, int]:
        self._now = self.ledger.store.now()
        rows = [row for row in self.ledger.store.list(prefix) if not self._young(row.written)]
        return self.ledger.store.delete(row.key for row in rows), sum(row.size for row in rows)

    def _abort(self, upload: store_uploads.Upload, key: str, size: int) -> tuple[int, int]:
        if key and self.ledger.busy(key):
            return 0, 0
        store_uploads.abort(self.ledger.store, upload)
        return 1, size
