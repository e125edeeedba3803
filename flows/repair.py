"""`moxin repair`: what of the ledger is damaged, and what can be done about it. A dry run unless `--apply` is given.

    moxin repair                 records that cannot be read, lost objects, torn checkpoints, attempts without an end
    moxin repair --deep          read every object and checkpoint too, and compare its SHA-256
    moxin repair --apply         do what was said

What is damaged moves under `damaged/` of the store and stays there. Deleted are only checkpoints that nobody can use
again: uploads that were never committed, and those of results that are published. What belongs to a key is touched
under the key's lease alone, and looked at once more first: a run that began meanwhile keeps what is its.

The exit status is 1 while there is something left to mend, else 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flows.idle_keys import exclusive
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.checkpoints import ROWS, marker
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.records import DamagedRecord
from stages.core.store import Store, Stored
from stages.core.store_errors import Damaged


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: the object, what is wrong with it, and what `--apply` does (or what the user can do)."""

    object: str
    what: str
    action: str
    apply: Callable[[], bool] | None = None
    """Does it, and says whether it was done: False where a run has begun meanwhile, or has mended it itself."""

    def row(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {"object": self.object, "what": self.what, "action": self.action, "can_apply": self.apply is not None}


def examine(ledger: Ledger, deep: bool = False) -> list[Finding]:
    """Everything that is wrong with a ledger. Changes nothing."""
    results, findings = _manifests(ledger)
    findings += _leases(ledger)
    findings += _names(ledger)
    with ThreadPoolExecutor(8) as pool:
        for some in pool.map(partial(_objects, ledger, deep), results.values()):
            findings += some
    findings += _attempts(ledger)
    findings += _checkpoints(ledger, results.keys(), deep)
    return findings


def apply(findings: Iterable[Finding]) -> list[Finding]:
    """Do what can be done; the findings that were dealt with."""
    return [finding for finding in findings if finding.apply is not None and finding.apply()]


# --- records ----------------------------------------------------------------------------------------------------------


def _aside(ledger: Ledger, error: DamagedRecord, then: str, read: Callable[[], object]) -> Finding:
    """A record that cannot be read. read: reads it again, when the finding is dealt with."""
    return Finding(
        error.key,
        str(error).removesuffix(": 'moxin repair' says what can be done"),
        f"move under damaged/; {then}",
        lambda: _still_damaged(read) and ledger.set_aside(error.key) is not None,
    )


def _still_damaged(read: Callable[[], object]) -> bool:
    try:
        read()
    except DamagedRecord:
        return True
    return False


def _alone(ledger: Ledger, key: str, act: Callable[[], object]) -> bool:
    """Do something to what belongs to a key while this process holds its lease. False: somebody works on the key, or a
    job of a lost run may.
    """
    with exclusive(ledger, key, "moxin repair") as lease:
        return lease is not None and act() is not False


def _manifests(ledger: Ledger) -> tuple[dict[str, StageResult], list[Finding]]:
    """Published results by key, and the manifests that cannot be read."""
    results: dict[str, StageResult] = {}
    findings: list[Finding] = []
    for key in [_stem(row) for row in ledger.store.list("manifests/")]:
        try:
            manifest = ledger.manifest(key)
        except DamagedRecord as error:
            finding = _aside(ledger, error, "its node runs again when it is selected", partial(ledger.manifest, key))
            assert finding.apply is not None
            findings.append(replace(finding, apply=partial(_alone, ledger, key, finding.apply)))
            continue
        if manifest is not None:
            results[key] = manifest[0]
    return results, findings


def _leases(ledger: Ledger) -> list[Finding]:
    findings: list[Finding] = []
    for key in [_stem(row) for row in ledger.store.list("leases/")]:
        try:
            ledger.lease(key)
        except DamagedRecord as error:
            findings.append(
                Finding(
                    error.key,
                    str(error),
                    "move under damaged/, and write a free lease with the epoch that its attempts show",
                    partial(_mend_lease, ledger, key),
                )
            )
    return findings


def _mend_lease(ledger: Ledger, key: str) -> bool:
    if not _still_damaged(partial(ledger.lease, key)):
        return False
    ledger.mend_lease(key)
    return True


def _names(ledger: Ledger) -> list[Finding]:
    """Node records, tags, experiments."""
    findings: list[Finding] = []
    anew = "the node's next run in this profile writes it anew"
    gone = "the name is then free: give it again"
    reads: list[tuple[Callable[[], object], str]] = []
    for row in ledger.store.list("nodes/"):
        _, profile, name = row.key.split("/", 2)
        reads.append((partial(ledger.node, profile, name.removesuffix(".json")), anew))
    reads += [(partial(ledger.tag, _stem(row)), gone) for row in ledger.store.list("tags/")]
    reads += [(partial(ledger.experiment, _stem(row)), gone) for row in ledger.store.list("experiments/")]
    for read, then in reads:
        try:
            read()
        except DamagedRecord as error:
            findings.append(_aside(ledger, error, then, read))
    return findings


def _attempts(ledger: Ledger) -> list[Finding]:
    """Attempt records that cannot be read, and those that nobody will end any more."""
    findings: list[Finding] = []
    for row in ledger.store.list("attempts/"):
        if not row.key.endswith(".json"):
            continue
        _, key, name = row.key.split("/")
        try:
            record = ledger.attempt(key, int(name.removesuffix(".json")))
            held = ledger.lease(key)
        except DamagedRecord as error:
            if error.key == row.key:
                findings.append(
                    _aside(
                        ledger,
                        error,
                        "the attempt is no more listed; its log stays",
                        partial(ledger.attempt, key, int(name.removesuffix(".json"))),
                    )
                )
            continue
        if record is None or record.ended_at or (held is not None and held[0].epoch == record.epoch and held[0].live):
            continue
        what = f"an attempt at {record.node} of {record.started_at[:19]} has no end, and nobody holds its lease"
        if record.job and held is not None and held[0].holder and held[0].epoch == record.epoch:
            findings.append(
                Finding(
                    row.key,
                    f"{what}; its job {record.job} ({record.launcher}) may live on",
                    "nothing: the next run of the node follows it",
                )
            )
        else:
            findings.append(
                Finding(
                    row.key,
                    what,
                    "write that it was lost",
                    partial(_alone, ledger, key, partial(_end_attempt, ledger, key, record.epoch)),
                )
            )
    return findings


def _end_attempt(ledger: Ledger, key: str, epoch: int) -> None:
    ledger.end_attempt(key, epoch)  # not done: it has an end, which taking the lease may have written


# --- objects ----------------------------------------------------------------------------------------------------------


def _objects(ledger: Ledger, deep: bool, result: StageResult) -> list[Finding]:
    """Objects of one result that are lost, of another size or (deep) of other bytes."""
    remedy = f"nothing to apply: 'moxin run --select {result.node} --force' makes them again, and 'moxin plan' shows it"
    missing = set(ledger.missing_objects(result, deep))
    findings = [
        Finding(key, f"an object of {result.node} is lost, has another size, or was told to be damaged", remedy)
        for key in sorted(missing)
    ]
    if deep:
        for entry in (f for manifest in result.outputs.values() for f in _files(ledger, manifest)):
            if entry.object in missing:
                continue
            if (wrong := _wrong_bytes(ledger.store, entry)) is not None:
                action = f"write that down beside it: 'moxin plan' then shows {result.node} as one that must run"
                findings.append(
                    Finding(
                        entry.object,
                        f"an object of {result.node} {wrong[0]}",
                        action,
                        partial(_report_damage, ledger, entry.object, wrong[1]),
                    )
                )
    return findings


def _files(ledger: Ledger, manifest: ArtifactManifest) -> list[FileEntry]:
    """The files of an output, as far as its index can be read: a page that cannot is among the missing."""
    try:
        return ledger.entries(manifest)
    except Damaged:
        return []


def _report_damage(ledger: Ledger, key: str, sha256: str | None) -> bool:
    ledger.report_damage(key, sha256)
    return True


def _wrong_bytes(store: Store, entry: FileEntry) -> tuple[str, str | None] | None:
    """What is wrong with an object, and the SHA-256 that it has; None when it is right."""
    try:
        digest = store.digest(entry.object)
    except Damaged:
        return "is lost", None
    return None if digest == entry.sha256 else (f"has the SHA-256 {digest} instead of {entry.sha256}", digest)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _checkpoints(ledger: Ledger, published: Iterable[str], deep: bool) -> list[Finding]:
    """Checkpoints that are not whole, and those that nobody will use."""
    steps: dict[tuple[str, int], dict[str, Stored]] = defaultdict(dict)
    segments: dict[str, dict[str, Stored]] = defaultdict(dict)
    for row in ledger.store.list("checkpoints/"):
        _, key, step, _ = row.key.split("/", 3)
        (segments[key] if step == ROWS else steps[key, int(step)])[row.key] = row
    busy = {key for key in {key for key, _ in steps} if ledger.busy(key)}
    done = set(published)
    findings: list[Finding] = []
    for (key, step), rows in steps.items():
        name, size = f"checkpoints/{key}/{step:012d}/", sum(row.size for row in rows.values())
        drop = partial(_alone, ledger, key, partial(_drop, ledger, key, step, f"{name}COMMIT.json" in rows))
        if key in busy:
            continue
        if key in done:
            findings.append(
                Finding(name, "a checkpoint of a result that is published", f"delete it: {size:,} bytes", drop)
            )
        elif f"{name}COMMIT.json" not in rows:
            findings.append(Finding(name, "an upload that was never committed", f"delete it: {size:,} bytes", drop))
        elif (why := _torn(ledger, key, step, rows | segments[key], deep)) is not None:
            aside = partial(_alone, ledger, key, partial(ledger.set_checkpoint_aside, key, step))
            findings.append(
                Finding(
                    f"{name}COMMIT.json",
                    why,
                    "move under damaged/: the next attempt begins at the checkpoint before",
                    aside,
                )
            )
    return findings


def _drop(ledger: Ledger, key: str, step: int, committed: bool) -> bool:
    """Remove a checkpoint, unless an attempt that has come and gone meanwhile has committed it."""
    if not committed and ledger.store.stored(marker(key, step)):  # by its name: a list may be late
        return False
    ledger.drop_checkpoints(key, step)
    return True


def _torn(ledger: Ledger, key: str, step: int, rows: dict[str, Stored], deep: bool) -> str | None:
    """Why a checkpoint is not whole, or None."""
    try:
        files = ledger.checkpoint(key, step).files
    except (Damaged, DamagedRecord) as error:
        return str(error)
    for entry in files:
        row = rows.get(entry.object)
        if row is None or row.size != entry.size:
            row = ledger.store.stored(entry.object)  # by its name: a list may be late
        if row is None or row.size != entry.size:
            return f"its file {entry.path} is lost or has another size"
        if deep and (wrong := _wrong_bytes(ledger.store, entry)) is not None:
            return f"its file {entry.path} {wrong[0]}"
    return None


def _stem(row: Stored) -> str:
    return row.key.rsplit("/", 1)[1].removesuffix(".json")
