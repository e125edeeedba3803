"""The ledger: manifests, attempts, leases, checkpoints. All of it is objects in the store; there is no database.

    manifests/<key>.json                      one published result per key; its conditional PUT publishes
    objects/<stage>/<key>/<epoch>/<port>/...  the files that a manifest lists
    objects/<stage>/<key>/<epoch>/.index/<port>/...  pages that list them, where they are many (stages.core.index)
    work/<stage>/<key>/<step>/...             what tasks have made: files, some of them in manifests, and receipts
    objects/<stage>/<key>/<epoch>/DIGESTS.json  SHA-256 of the manifest itself and of the metric rows
    attempts/<key>/<epoch>.json               how each attempt went; .outcome: in its own words; .log.jsonl: its events
    attempts/<key>/<epoch>.node.<node>        whose attempt it is, so that a list says it
    attempts/<key>/<epoch>.begun.<rank>       that a process of it has begun: where its job begins once more, names of
                                              what that stores have <epoch>-<start> in place of <epoch>
    leases/<key>.json                         who works on a key now
    checkpoints/<key>/<step>/<epoch>/...      files of a mid-stage checkpoint; COMMIT.json makes it visible
    checkpoints/<key>/rows/<epoch>/<number>   metric rows that any later checkpoint of the key refers to
    nodes/<profile>/<node>.json               the key that a node last had in a profile
    nodes/<profile>@<experiment>/<node>.json  and in an experiment
    experiments/<name>.json                   what an experiment is; its conditional PUT makes the name its own
    tags/<name>.json                          the key that a name stands for, whatever runs later
    damaged/<object>.<time>                   what could not be read and was moved out of the way; never deleted by us

Records of nodes and attempts end in a seal, the SHA-256 of the rest (`stages.core.records.sealed`).

A record that cannot be read is `DamagedRecord`, which names it; `moxin repair` mends what can be mended. An object
whose bytes are not those of its manifest is told in `objects/<stage>/<key>/<epoch>/DAMAGED.json`, and counts as lost
from then on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from stages.core.artifacts import ArtifactManifest, FileEntry, IndexRef
from stages.core.checkpoints import CheckpointStore
from stages.core.errors import InputError
from stages.core.index import index_objects, read_index
from stages.core.keys import canonical_json, sha256
from stages.core.leases import LeaseLost
from stages.core.messages import InputRef, Lease, StageResult
from stages.core.records import DamagedRecord, ExperimentRecord, NodeRecord, TagRecord, attempt_folder, sealed
from stages.core.store_errors import Conflict, Damaged

DAMAGED_MARK = "DAMAGED.json"
"""Lies beside the objects of an attempt whose bytes were found to be others than its manifest says: {object: SHA-256
found}.
"""
DIGESTS = "DIGESTS.json"
"""Lies beside the objects of an attempt: {object: SHA-256} of what a manifest cannot state, the manifest itself above
all. `moxin verify` compares with it; results of before it was written have none.
"""


class Ledger(CheckpointStore):
    """All records about keys, over one store."""

    # --- manifests --------------------------------------------------------------------------------------------

    def manifest(self, key: str, listed: bool = False) -> tuple[StageResult, str] | None:
        """The published result of a key and the ETag of its manifest, or None. Raises DamagedRecord.

        listed: with the files of all its outputs, also of those that have an index. Raises Damaged, too.
        """
        name = f"manifests/{key}.json"
        stored = self.store.get(name)
        if stored is None:
            return None
        result = self._parse(StageResult, name, *stored)
        if listed:
            outputs = {
                port: manifest.model_copy(update={"files": tuple(self.entries(manifest))})
                if manifest.index
                else manifest
                for port, manifest in result.outputs.items()
            }
            result = result.model_copy(update={"outputs": outputs})
        return result, stored[1]

    def manifest_digest(self, key: str) -> str | None:
        """The SHA-256 of a key's manifest as it lies in the store, or None."""
        stored = self.store.get(f"manifests/{key}.json")
        return None if stored is None else sha256(stored[0])

    def published(self, key: str) -> bool:
        """Whether a key has a manifest that can be read."""
        try:
            return self.manifest(key) is not None
        except DamagedRecord:
            return False

    def missing_objects(self, result: StageResult, deep: bool = False) -> list[str]:
        """Objects of a result that the store has not, has with another size, or is known to hold with other bytes.

        Of an artifact with an index the pages are looked for, and its files when it is `deep`: a plan costs by pages.
        """
        sizes_by_key = {f.object: f.size for manifest in result.outputs.values() for f in manifest.files}
        roots = [manifest.index for manifest in result.outputs.values() if manifest.index]
        gone: set[str] = set()
        for root in roots:
            pages = {row.key: row.size for row in self.store.list(_page_folder(root))}
            if pages.pop(_page_folder(root) + DAMAGED_MARK, None) is not None:
                gone |= self.damaged_objects(_page_folder(root)).keys()
            if root.object not in pages or len(pages) != root.pages:
                gone |= self._lost_pages(root, pages)
            elif deep:
                sizes_by_key |= {f.object: f.size for f in read_index(self.store, root)}
        sizes: dict[str, int] = {}
        for prefix in sorted({_folder(key) for key in sizes_by_key}):
            sizes.update((row.key, row.size) for row in self.store.list(prefix))
            if prefix + DAMAGED_MARK in sizes:
                gone |= self.damaged_objects(prefix).keys() & sizes_by_key.keys()
        return sorted(gone | self._lost(sizes_by_key, sizes))

    def _lost(self, sizes: Mapping[str, int], listed: Mapping[str, int]) -> set[str]:
        """Of objects that have these sizes those that are not there, or have another one. What a list has not is asked
        for by its name: a list may be late.
        """
        doubted = [key for key, size in sizes.items() if listed.get(key) != size]
        with ThreadPoolExecutor(8) as pool:
            rows = zip(doubted, pool.map(self.store.stored, doubted), strict=True)
            return {key for key, row in rows if row is None or row.size != sizes[key]}

    def _lost_pages(self, root: IndexRef, there: Collection[str]) -> set[str]:
        try:
            lacking = set(index_objects(self.store, root)) - set(there)  # by names from its root on
        except Damaged as error:
            return {error.key}
        return {page for page in lacking if self.store.stored(page) is None}  # the list came late

    def entries(self, manifest: ArtifactManifest) -> list[FileEntry]:
        """The files of an output, in path order. Raises Damaged when a page of its index is lost or damaged."""
        if manifest.left_out:
            raise TypeError("this is a reference to an input: its producer's manifest lists the files")
        return read_index(self.store, manifest.index) if manifest.index else list(manifest.files)

    def index_objects(self, manifest: ArtifactManifest) -> list[str]:
        """The names of all pages of an output's index. Raises Damaged."""
        return index_objects(self.store, manifest.index) if manifest.index else []

    def input_entries(self, ref: InputRef, producers: dict[str, StageResult | None] | None = None) -> list[FileEntry]:
        """The files of an input, in path order. Raises InputError when its producer has another result now, Damaged.
        producers: results that were read for other inputs, by key; what is read for this one is added.
        """
        if not ref.manifest.left_out:
            return self.entries(ref.manifest)
        producers = {} if producers is None else producers
        if ref.key not in producers:
            published = self.manifest(ref.key)
            producers[ref.key] = published[0] if published else None
        stored = producers[ref.key]
        output = stored.outputs.get(ref.port) if stored else None
        if output is None or output.digest != ref.manifest.digest:
            what = "is gone" if output is None else "was made anew, with other bytes,"
            raise InputError(f"the output {ref.port} of {ref.node} {what} since this was planned: run it again")
        return self.entries(output)

    def damaged_objects(self, prefix: str) -> dict[str, str]:
        """What is known of damaged objects under the folder of an attempt: {object: SHA-256 found there}."""
        return self._damage_report(prefix)[0]

    def _damage_report(self, prefix: str) -> tuple[dict[str, str], str | None]:
        """`damaged_objects`, and the ETag of the report that says so; one that cannot be read says nothing."""
        report = self.store.get(prefix + DAMAGED_MARK)
        if report is None:
            return {}, None
        try:
            return dict(json.loads(report[0])), report[1]
        except (ValueError, TypeError):
            return {}, report[1]

    def report_damage(self, key: str, sha256: str | None, index: IndexRef | None = None) -> None:
        """Tell that an object holds other bytes than its manifest says: plans and runs then count it as lost.

        index: of the artifact that it belongs to, where it has one.
        """
        prefix = _page_folder(index) if index else _folder(key)
        while True:  # others may report other objects of the attempt at the same time: nobody's report is lost
            known, etag = self._damage_report(prefix)
            body = json.dumps(known | {key: sha256 or ""}, sort_keys=True).encode()
            with contextlib.suppress(Conflict):
                self.store.put(prefix + DAMAGED_MARK, body, if_absent=etag is None, if_match=etag)
                return

    def publish(
        self, result: StageResult, lease: Lease, replaces: str | None = None, metrics_sha256: str | None = None
    ) -> None:
        """Make a result visible, once. Raises LeaseLost when the lease has moved on or somebody published first.

        metrics_sha256: of the metric rows, where the result has some.

        The digests come before the check of the lease: whoever collects garbage takes the lease and then looks at what
        is there, so that it either is found out here or finds what was written just now, and lets it be.
        """
        name, body = f"manifests/{result.key}.json", result.model_dump_json().encode()
        digests = {name: sha256(body)} | ({result.metrics_object: metrics_sha256} if result.metrics_object else {})
        self.store.put(attempt_prefix(result) + DIGESTS, canonical_json(digests))
        self.check(lease)
        try:
            self.store.put(name, body, if_absent=replaces is None, if_match=replaces)
        except Conflict as error:
            raise LeaseLost(
                f"node {result.node}: key {result.key[:12]} was published by another attempt meanwhile"
            ) from error

    def published_by(self, lease: Lease, replaces: str | None) -> StageResult | None:
        """What an attempt itself has published; None while it has not. Raises LeaseLost when another one has, since the
        attempt was given `replaces`.

        A scheduler may begin a job once more, under its epoch, after it has published and before it has ended: what it
        would store then lies under the names of the published objects.
        """
        try:
            stored = self.manifest(lease.key)
        except DamagedRecord:  # it is none that anybody could be given
            return None
        if stored is None or stored[1] == replaces:
            return None
        if stored[0].attempt.epoch == lease.epoch:
            return stored[0]
        raise LeaseLost(f"key {lease.key[:12]} was published by another attempt (epoch {stored[0].attempt.epoch})")

    def recorded_digests(self, result: StageResult) -> dict[str, str] | None:
        """{object: SHA-256} of a result's manifest and metric rows, as they were published; None where nothing was
        written down (a result of before). Raises DamagedRecord.
        """
        name = attempt_prefix(result) + DIGESTS
        record = self.store.get(name)
        if record is None:
            return None
        try:
            return {str(key): str(value) for key, value in json.loads(record[0]).items()}
        except (ValueError, AttributeError) as error:
            why = "not a JSON object of digests"
            raise DamagedRecord(self.store.where(name), name, "record of digests", why, record[1]) from error

    # --- names ------------------------------------------------------------------------------------------------

    def set_node(self, profile: str, record: NodeRecord, seen: Mapping[str, str] | None = None) -> bool:
        """Remember the key that a node has now. seen: what `node_etags` said when the run began: where another run has
        moved the name since, it stays with that, and the answer is False.
        """
        name = f"nodes/{profile}/{record.node}.json"
        if seen is None:
            self.store.put(name, sealed(record))
            return True
        etag = seen.get(record.node)
        try:
            self.store.put(name, sealed(record), if_absent=etag is None, if_match=etag)
        except Conflict:
            return False
        return True

    def move_node(self, profile: str, record: NodeRecord, seen: Mapping[str, str] | None) -> str | None:
        """As `set_node`; what to say where the name stays with another result."""
        if self.set_node(profile, record, seen):
            return None
        other = self.node(profile, record.node)
        if other is None or other.key == record.key:
            return None
        return (
            f"run {other.run_id} has given {record.node} of {profile} another result meanwhile ({other.key[:12]}):"
            f" that one stays, this one is found by 'moxin show {record.node} --key {record.key[:12]}'"
        )

    def node_etags(self, profile: str) -> dict[str, str]:
        """The ETags of the records of a profile's nodes, by node."""
        folder = f"nodes/{profile}/"
        return {row.key.removeprefix(folder).removesuffix(".json"): row.etag for row in self.store.list(folder)}

    def node(self, profile: str, name: str) -> NodeRecord | None:
        """The last known key of one node. Raises DamagedRecord."""
        row = f"nodes/{profile}/{name}.json"
        stored = self.store.get(row)
        return self._parse(NodeRecord, row, *stored) if stored else None

    def nodes(self, profile: str, names: Collection[str] | None = None) -> dict[str, NodeRecord]:
        """The last known key of every node of a profile, or of these. Raises DamagedRecord."""
        folder = f"nodes/{profile}/"
        rows = [o.key for o in self.store.list(folder)]
        if names is not None:
            rows = [row for row in rows if row.removeprefix(folder).removesuffix(".json") in names]
        with ThreadPoolExecutor(8) as pool:
            bodies = [(row, body) for row, body in zip(rows, pool.map(self.store.get, rows), strict=True) if body]
        records = [self._parse(NodeRecord, row, *body) for row, body in bodies]
        return {record.node: record for record in records}

    def last_results(self, profile: str, names: Iterable[str]) -> dict[str, StageResult]:
        """The results that these nodes of a profile had last, where there are any whose records can be read."""
        asked = list(names)
        known = self.node_etags(profile) if asked else {}
        chosen = [name for name in asked if name in known]

        def last(name: str) -> StageResult | None:
            with contextlib.suppress(DamagedRecord):
                record = self.node(profile, name)
                stored = self.manifest(record.key) if record else None
                return stored[0] if stored else None
            return None

        with ThreadPoolExecutor(8) as pool:
            return {name: one for name, one in zip(chosen, pool.map(last, chosen), strict=True) if one}

    def node_count(self, profile: str) -> int:
        """How many nodes of a profile have a last known key: what `nodes` has, without reading it."""
        return sum(1 for _ in self.store.list(f"nodes/{profile}/"))

    def add_experiment(self, record: ExperimentRecord) -> bool:
        """Make a name an experiment's own; False where somebody else was first."""
        try:
            self.store.put(f"experiments/{record.name}.json", sealed(record), if_absent=True)
        except Conflict:
            return False
        return True

    def experiment(self, name: str) -> ExperimentRecord | None:
        """The experiment of that name. Raises DamagedRecord."""
        row = f"experiments/{name}.json"
        stored = self.store.get(row)
        return self._parse(ExperimentRecord, row, *stored) if stored else None

    def experiments(self) -> list[ExperimentRecord]:
        """All experiments, by name. Raises DamagedRecord."""
        with ThreadPoolExecutor(8) as pool:
            return [record for record in pool.map(self.experiment, self._names("experiments/")) if record]

    def set_tag(self, record: TagRecord, replaces: str | None = None) -> bool:
        """Give a result a name; False where the name is somebody else's by now. replaces: the ETag of the tag that is
        moved.
        """
        name = f"tags/{record.name}.json"
        try:
            self.store.put(name, sealed(record), if_absent=replaces is None, if_match=replaces)
        except Conflict:
            return False
        return True

    def tag(self, name: str) -> tuple[TagRecord, str] | None:
        """The tag of that name and its ETag. Raises DamagedRecord."""
        row = f"tags/{name}.json"
        stored = self.store.get(row)
        return (self._parse(TagRecord, row, *stored), stored[1]) if stored else None

    def tags(self) -> list[TagRecord]:
        """All tags, by name. Raises DamagedRecord."""
        with ThreadPoolExecutor(8) as pool:
            return [stored[0] for stored in pool.map(self.tag, self._names("tags/")) if stored]

    def remove_tag(self, name: str) -> bool:
        """Take a name away, never a result; False where there is none."""
        return self.store.delete([f"tags/{name}.json"]) > 0

    def _names(self, folder: str) -> list[str]:
        """The names of the records in a folder of the store."""
        return [row.key.removeprefix(folder).removesuffix(".json") for row in self.store.list(folder)]


def attempt_prefix(result: StageResult) -> str:
    """Where the objects of the attempt that made a result lie, ending in a slash."""
    return f"objects/{result.stage}/{result.key}/{attempt_folder(result.attempt.epoch, result.attempt.start)}/"


def _page_folder(root: IndexRef) -> str:
    """Where the pages of an index lie, ending in a slash."""
    return root.object.rpartition("/")[0] + "/"


def _folder(key: str) -> str:
    """The folder of the attempt, or of the step of tasks, that an object belongs to: objects/<stage>/<key>/<epoch>/ or
    work/<stage>/<key>/<step>/.
    """
    return key.rsplit("/", key.count("/") - 3)[0] + "/"
