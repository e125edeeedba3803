"""What nobody needs in the object store: found from listings and marks, and removed key by key.

First everything is listed, then the marks are read (`flows.garbage_marks`): what is published while this looks is
marked. Before anything of a key is removed, its lease is taken, which fences off every earlier attempt, and the marks
are read again, once for some keys whose leases are held together: a manifest that appeared in between wins. What is
younger than `Limits.min_age` by the store's own clock stays. Nothing that a manifest which can be read refers to is
removed, unless `Limits.results_after` says so.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from flows.garbage_items import Garbage, Gone, Group, Limits
from flows.garbage_marks import Marks, Published, folder_of
from flows.idle_keys import exclusive
from stages.core import store_uploads
from stages.core.checkpoints import ROWS
from stages.core.leases import LeaseLost
from stages.core.ledger import DIGESTS, Ledger
from stages.core.messages import Lease
from stages.core.records import epoch_of

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


Judge = Callable[[str, Group], "tuple[str, str] | None"]


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
                below = partial(self._below, folder)
                yield Garbage(kind, folder, group.objects, group.bytes, kept=kept, removal=below)
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
            below = partial(self._below, folder)
            yield Garbage(REHEARSALS, folder, group.objects, group.bytes, kept=kept, removal=below)

    def checkpoints(self) -> list[Garbage]:
        """Checkpoints of published keys alone, without reading anything of other keys: cheap enough for every start."""
        self._now = self.ledger.store.now()
        groups = self._groups("checkpoints/", 3)
        self.marks.refresh({folder.split("/")[1] for folder in groups})
        items = (item for folder, group in groups.items() for item in self._item(folder, group, self._checkpoint))
        return [item for item in items if item.kind == CHECKPOINTS and not item.kept]

    # --- judging: the kind, and why it stays ("": it goes); None: it is needed, or in use ---

    def _attempt(self, folder: str, group: Group) -> tuple[str, str] | None:
        """objects/<stage>/<key>/<epoch>/"""
        key = folder.split("/")[2]
        published = self.marks.published.get(key)
        if (published and published.folder == folder) or key in self.marks.live:
            return None
        if key in self.marks.unreadable:
            return ATTEMPTS, UNREADABLE
        if published is None:
            return ATTEMPTS, ""
        if self._young(published.written):  # whoever reads the one before may have been started just now
            return None
        if self.marks.reads(key):
            return REPLACED, "an attempt at work may read it, or a result was made from it that has no newer input"
        kind = REPLACED if group.committed else ATTEMPTS  # by its digests; results of before have none
        return kind, "an attempt is at work whose inputs are not known" if self.marks.blind else ""

    def _tasks(self, folder: str, group: Group) -> tuple[str, str] | None:
        """work/<stage>/<key>/"""
        key = folder.split("/")[2]
        if key in self.marks.live:
            return None
        return self._left(TASKS, key, group, self.marks.published.get(key), group.newest)

    def _checkpoint(self, folder: str, group: Group) -> tuple[str, str] | None:
        """checkpoints/<key>/<step>/"""
        key = folder.split("/")[1]
        if key in self.marks.live:
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

    def _request(self, folder: str, group: Group) -> tuple[str, str] | None:
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
                group.epoch = max(group.epoch, epoch_of(parts[3]))
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
        epoch = group.epoch or (epoch_of(rest[0]) if parts[0] == "objects" else 0)
        if kept := self._referred(folder):  # in part: count what is left
            group = Group(newest=group.newest, epoch=group.epoch, committed=group.committed)
            for row in self.ledger.store.list(folder):
                if row.key not in kept:
                    group.add(row)
            if not group.objects:
                return
        together = self._unrequest if judge == self._request else self._sweep
        yield Garbage(verdict[0], folder, group.objects, group.bytes, key, epoch, verdict[1], together=together)

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
            yield Garbage(RESULTS, one.folder, count, size, key, one.epoch, kept, together=self._drop_results)

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
            yield Garbage(UPLOADS, upload.key, 1, size, key, removal=partial(self._abort, upload, key, size))

    # --- removing -----------------------------------------------------------------------------------------------

    @contextmanager
    def _held(self, items: Sequence[Garbage]) -> Generator[dict[str, Lease]]:
        """Hold the keys of some items, as far as nobody works on them."""
        with ExitStack() as stack:
            keys = dict.fromkeys(item.key for item in items)
            leases = {key: stack.enter_context(exclusive(self.ledger, key, HOLDER, LEASE)) for key in keys}
            yield {key: lease for key, lease in leases.items() if lease is not None}

    def _sweep(self, items: Sequence[Garbage]) -> Generator[Gone]:
        """Remove folders of keys, all but what is referred to, or younger than the limit."""
        with self._held(items) as leases:
            held = [item for item in items if item.key in leases]
            replaced = any(item.where.startswith("objects/") and item.key in self.marks.published for item in held)
            self._refresh(leases, only=not replaced)
            for item in items:
                yield item, self._sweep_folder(item.where, leases[item.key]) if item.key in leases else (0, 0)

    def _sweep_folder(self, folder: str, lease: Lease) -> tuple[int, int]:
        judges = {"objects": (self._attempt, 4), "work": (self._tasks, 3), "checkpoints": (self._checkpoint, 3)}
        judge, depth = judges[folder.partition("/")[0]]
        group = self._groups(folder, depth).get(folder)
        if group is None or (verdict := judge(folder, group)) is None or verdict[1]:
            return 0, 0
        # since it was listed; its attempt may be about to publish it, and a list may be too late for its digests
        digests = self.ledger.store.stored(folder + DIGESTS) if folder.startswith("objects/") else None
        if self._young(max(group.newest, digests.written if digests else 0.0)):
            return 0, 0
        return self._delete(folder, self._referred(folder), lease)

    def _drop_results(self, items: Sequence[Garbage]) -> Generator[Gone]:
        """Remove results: their manifests first, so that nobody finds them any more."""
        with self._held(items) as leases:
            self._refresh(leases)
            known = not (self.marks.names_unreadable or self.marks.blind)
            unwanted = [key for key in self._unwanted() if key in leases] if known else []
            dropped = {key: self.marks.published[key] for key in unwanted if self._unpublish(leases[key])}
            if dropped:
                self.marks.refresh(held=leases)
            for item in items:
                count = size = 0
                if one := dropped.get(item.key):
                    for folder in (one.folder, f"work/{one.stage}/{item.key}/"):
                        more = self._delete(folder, self._referred(folder), leases[item.key])
                        count, size = count + more[0], size + more[1]
                    count += 1
                yield item, (count, size)

    def _unpublish(self, lease: Lease) -> bool:
        """Take a key's manifest away, if its lease is still held: others were taken since."""
        try:
            self.ledger.renew(lease, LEASE)
        except LeaseLost:
            return False
        self.ledger.store.delete([f"manifests/{lease.key}.json"])
        self.marks.emptied(lease)
        return True

    def _refresh(self, leases: Mapping[str, Lease], only: bool = False) -> None:
        """Marks as of now. only: where nothing but a key's own manifest can
        refer to what goes: what an attempt left that was never published, no other attempt was ever given to read.
        """
        if leases:
            self._now = self.ledger.store.now()
            self.marks.refresh(leases if only else None, leases)

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

    def _unrequest(self, items: Sequence[Garbage]) -> Generator[Gone]:
        self.marks.refresh({item.key for item in items})
        for item in items:
            goes = self._request(item.where, Group()) is not None
            yield item, (self.ledger.store.delete([item.where.rstrip("/")]), item.bytes) if goes else (0, 0)

    def _below(self, prefix: str) -> tuple[int, int]:
        self._now = self.ledger.store.now()
        rows = [row for row in self.ledger.store.list(prefix) if not self._young(row.written)]
        return self.ledger.store.delete(row.key for row in rows), sum(row.size for row in rows)

    def _abort(self, upload: store_uploads.Upload, key: str, size: int) -> tuple[int, int]:
        if key and self.ledger.busy(key):
            return 0, 0
        store_uploads.abort(self.ledger.store, upload)
        return 1, size
