"""`moxin adopt`: what others made becomes a result of a node, so that a run begins behind it.

The program `stages.lib.outside.program` brings the files and checks them; here they are stored and published as any
result is: under a lease, by one conditional PUT. Its stage is `adopt`, and its key follows from where it came from and
from its bytes: adopting the same again changes nothing. A profile takes it by `adopt.<node> = <tag or key>`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.experiments.naming import user
from flows.plan import ADOPTED
from flows.stage_job import git_commit
from stages.core.disk import disk_full
from stages.core.errors import ConfigError, ExitClass, InfraError, InputError, StageError
from stages.core.files import ROOT, file_sha256
from stages.core.graph import Node
from stages.core.index import artifact_manifest
from stages.core.keys import canonical_json, sha256, source_digest, stage_key
from stages.core.ledger import Ledger
from stages.core.messages import Attempt, CodeRef, StageResult
from stages.core.records import LEASE_SECONDS, AttemptRecord, now
from stages.core.store import in_threads

PROGRAM = "stages.lib.outside.program"
REVISION = 1
ERRORS: Mapping[str, type[StageError]] = {
    ExitClass.CONFIG.value: ConfigError,
    ExitClass.INPUT.value: InputError,
    ExitClass.INFRA.value: InfraError,
}
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Adopted:
    """A result that was adopted. new: whether it was not there before."""

    result: StageResult
    new: bool


def adopt(ledger: Ledger, node: Node, config: Any, place: str, work: Path, tell: Tell = lambda text: None) -> Adopted:
    """Make what lies at a place the result of a node. work: a folder for what is fetched; a second call goes on there.

    Raises ConfigError, InputError, InfraError, LeaseHeld; then nothing is published.
    """
    tell(f"reading {place}")
    ports = node.outputs(config)
    try:
        work.mkdir(parents=True, exist_ok=True)
        answer = _ask({"place": place, "work": str(work), "ports": ports})
        sums = _sums(ledger, answer, tell)
    except OSError as error:
        raise disk_full(error, work) or InputError(f"{place} cannot be read: {error}") from error
    about = {
        "place": answer["place"],
        "source_revision": answer["revision"] or None,
        "license": {port: given["license"] or None for port, given in answer["ports"].items()},
    }
    contents = {port: sha256(canonical_json(sorted(rows.items()))) for port, rows in sums.items()}
    facets = {port: given["facets"] for port, given in answer["ports"].items()}
    identity = about | {"node": node.name, "types": ports, "contents": contents, "facets": facets}
    key = stage_key(ADOPTED, REVISION, identity, {})
    stored = ledger.manifest(key)
    if stored is not None and not ledger.missing_objects(stored[0]):
        return Adopted(stored[0], False)
    with _attempt(ledger, key, node.name) as lease:
        began, started = time.monotonic(), now()
        prefix = f"objects/{ADOPTED}/{key}/{lease.epoch:06d}"
        outputs = {
            port: artifact_manifest(
                ledger.store, f"{prefix}/.index/{port}",
                _stored(ledger, f"{prefix}/{port}", given["files"], sums[port], tell),
                type=ports[port], facets=given["facets"], meta=given["meta"],
            )
            for port, given in answer["ports"].items()
        }  # fmt: skip
        size = sum(manifest.size for manifest in outputs.values())
        result = StageResult(
            key=key, node=node.name, stage=ADOPTED, revision=REVISION, config=about, identity=identity, inputs={},
            outputs=outputs, stats={"files": sum(manifest.count for manifest in outputs.values()), "bytes": size},
            metrics_object=None,
            code=CodeRef(source_digest=source_digest("lib/outside"), git_commit=git_commit()),
            attempt=Attempt(
                run_id=f"moxin adopt, by {user()}", epoch=lease.epoch, started_at=started, ended_at=now(),
                wall_seconds=round(time.monotonic() - began, 3), cpu_seconds=0.0, peak_rss_bytes=0, bytes_in=size,
                bytes_out=size, resumed_from=None,
            ),
        )  # fmt: skip
        ledger.publish(result, lease, stored[1] if stored else None)
    return Adopted(result, True)


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the program says of a place. Raises what it raised."""
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode or not done.stdout:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        hint = ": install the packages of the stages (pip install 'moxin[data]')" if "ModuleNotFound" in last else ""
        raise InfraError(f"what lies there could not be read ({last}){hint}")
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise ERRORS.get(answer["exit"], InputError)(answer["error"])
    return answer


def _sums(ledger: Ledger, answer: Mapping[str, Any], tell: Tell) -> dict[str, dict[str, str]]:
    """SHA-256 of every file, by port and path."""
    sums: dict[str, dict[str, str]] = {port: dict(one["sha256"]) for port, one in answer["ports"].items()}
    rows = [
        (port, name, Path(path))
        for port, one in answer["ports"].items()
        for name, path in one["files"].items()
        if name not in sums[port]
    ]
    tell(f"taking the digests of {len(rows)} files")
    digests = in_threads(lambda row: file_sha256(row[2]), rows, ledger.store.interrupted)
    for (port, name, _), digest in zip(rows, digests, strict=True):
        sums[port][name] = digest
    return sums


def _stored(ledger: Ledger, prefix: str, files: Mapping[str, str], sums: Mapping[str, str], tell: Tell) -> list[Any]:
    """The entries of files that are brought into the store, in path order."""

    def store(name: str) -> Any:
        entry = ledger.store.put_file(f"{prefix}/{name}", Path(files[name]), name)
        if entry.sha256 != sums[name]:
            raise InputError(f"{name} changed while it was adopted: something else writes to it")
        tell(f"stored {name}, {entry.size:,} bytes")
        return entry

    return in_threads(store, sorted(files), ledger.store.interrupted)


@contextmanager
def _attempt(ledger: Ledger, key: str, node: str) -> Generator[Any]:
    """The lease of a key, renewed while the block runs, with the attempt in the ledger."""
    lease, ended = ledger.acquire(key, f"moxin adopt, by {user()}"), threading.Event()
    record = AttemptRecord(
        key=key, epoch=lease.epoch, node=node, run_id=f"moxin adopt, by {user()}", launcher=ADOPTED, started_at=now()
    )

    def renew() -> None:
        while not ended.wait(LEASE_SECONDS / 3):
            try:
                ledger.renew(lease)
            except StageError:
                continue  # publishing says it, where the lease is really lost

    threading.Thread(target=renew, daemon=True).start()
    end = ExitClass.INFRA
    try:
        ledger.begin_attempt(record)
        yield lease
        end = ExitClass.OK
    finally:
        ended.set()
        ledger.record_attempt(record.model_copy(update={"ended_at": now(), "exit_class": end.value}))
        ledger.release(lease)
