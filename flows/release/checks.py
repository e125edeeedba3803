"""`moxin verify` of a node: every link of a model's chain looked at again, and all that does not hold.

What is compared: a manifest with the digest that was written down when it was published; its key with what its stage,
configuration and inputs give; an artifact's digest with its type, facets and files; an input with the output that it
came from; the records of node and attempt with their seals; and every file's bytes with its SHA-256. Changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flows.release.chain import Chain, Fault, Link, newest_key, walk
from stages.core.artifacts import ArtifactManifest
from stages.core.errors import ConfigError
from stages.core.index import index_digest
from stages.core.keys import artifact_digest, stage_key
from stages.core.ledger import Ledger, attempt_prefix
from stages.core.messages import InputRef
from stages.core.records import DamagedRecord, seal_holds
from stages.core.store_errors import Damaged

READERS = 8
"""Objects that are read at once."""


@dataclass
class Verdict:
    """What a verification saw: the chain, what of it does not hold, and how much was read."""

    chain: Chain
    faults: list[Fault] = field(default_factory=list[Fault])
    notes: list[str] = field(default_factory=list[str])
    files: int = 0
    bytes: int = 0
    """Of the files' contents that were read; 0 where only names and sizes were looked at."""

    def row(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "node": self.chain.node,
            "profile": self.chain.profile,
            "ok": not self.faults,
            "results": len(self.chain.links),
            "files": self.files,
            "bytes_read": self.bytes,
            "faults": [fault.row() for fault in self.faults],
            "notes": self.notes,
            "chain": [
                {"node": link.node, "key": link.result.key, "manifest_sha256": link.manifest_sha256}
                for link in self.chain.links
            ],
        }


@dataclass(frozen=True)
class _File:
    """One object of a chain, and what must be in it."""

    node: str
    link: str
    object: str
    size: int
    sha256: str


def verify(ledger: Ledger, profile: str, node: str, deep: bool = True, key: str = "") -> Verdict:
    """Check the chain of a node's newest result, or of the one of a key. deep: read every file; else look for its
    object and size alone.

    Raises ConfigError where the node has no result, InfraError where the store cannot be asked.
    """
    record, newest = f"nodes/{profile}/{node}.json", not key
    try:
        key = key or newest_key(ledger, profile, node)
    except DamagedRecord as error:
        return Verdict(Chain(node, profile, ()), [Fault(node, f"record {record}", str(error))])
    chain, faults = walk(ledger, profile, node, key)
    verdict = Verdict(chain, faults)
    verdict.faults += _seal(ledger, node, record, {"node": node}) if newest else ()
    unsealed = 0
    for link in chain.links:
        verdict.faults += [*_manifest(ledger, link), *_attempt(ledger, link), *_key(link), *_inputs(link, chain)]
        unsealed += _digests(ledger, link) is None
    if unsealed:
        verdict.notes.append(
            f"{unsealed} of {len(chain.links)} results are of before digests of manifests were written down: their keys"
            " and contents were checked, their statistics were not"
        )
    _files(ledger, verdict, deep)
    return verdict


# --- records ----------------------------------------------------------------------------------------------------------


def _seal(ledger: Ledger, node: str, name: str, fields: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong with a record of node or attempt that can be read: its seal, or a field that its name says."""
    stored = ledger.store.get(name)
    if stored is None:
        yield Fault(node, f"record {name}", "it is not in the store")
        return
    if seal_holds(stored[0]) is False:
        yield Fault(node, f"record {name}", "it is not what was written (another SHA-256)")
    rows = json.loads(stored[0])
    for key, value in fields.items():
        if rows.get(key) != value:
            yield Fault(node, f"record {name}", f"its {key} is {rows.get(key)!r} instead of {value!r}")


def _attempt(ledger: Ledger, link: Link) -> list[Fault]:
    result = link.result
    name = f"attempts/{result.key}/{result.attempt.epoch:06d}.json"
    try:
        ledger.attempt(result.key, result.attempt.epoch)
    except DamagedRecord as error:
        return [Fault(link.node, f"record {name}", str(error))]
    return list(_seal(ledger, link.node, name, {"key": result.key, "epoch": result.attempt.epoch}))


def _digests(ledger: Ledger, link: Link) -> dict[str, str] | None:
    """What was written down of the manifest; empty where that cannot be read."""
    try:
        return ledger.recorded_digests(link.result)
    except DamagedRecord:
        return {}


def _manifest(ledger: Ledger, link: Link) -> Iterator[Fault]:
    """The manifest against what was written down of it when it was published, and the artifacts that it describes."""
    result = link.result
    name = f"manifests/{result.key}.json"
    try:
        digests = ledger.recorded_digests(result)
    except DamagedRecord as error:
        yield Fault(link.node, f"record {error.key}", str(error))
        digests = None
    if digests is not None and digests.get(name) != link.manifest_sha256:
        yield Fault(
            link.node,
            f"record {name}",
            f"its SHA-256 is {link.manifest_sha256}, but {digests.get(name, 'none')} was written down when it was"
            f" published ({attempt_prefix(result)}DIGESTS.json)",
        )
    for port, manifest in result.outputs.items():
        if (what := _wrong_digest(manifest)) is not None:
            yield Fault(link.node, f"output {port}", what)


def _wrong_digest(manifest: ArtifactManifest) -> str | None:
    """What is wrong with the digest of an artifact whose files are known."""
    index = index_digest(manifest.files) if manifest.index else None
    right = artifact_digest(manifest.type, manifest.facets, manifest.files, index)
    if right == manifest.digest:
        return None
    return f"its type, facets and files give the digest {right}, its manifest says {manifest.digest}"


def _key(link: Link) -> Iterator[Fault]:
    """The key against what it is made of."""
    result = link.result
    digests = {port: [ref.manifest.digest for ref in refs] for port, refs in result.inputs.items()}
    right = stage_key(result.stage, result.revision, result.identity, digests)
    if right != result.key:
        yield Fault(
            link.node,
            f"key {result.key}",
            f"stage, revision, configuration and inputs of its record give the key {right}",
        )
    for name, value in result.identity.items():
        if result.config.get(name) != value:
            yield Fault(
                link.node,
                f"setting {name}",
                f"the key was made with {value!r}, it ran with {result.config.get(name)!r}",
            )


def _inputs(link: Link, chain: Chain) -> Iterator[Fault]:
    """Every input against the output that it came from."""
    for place, ref in link.refs:
        where = f"input {place} from {ref.node}.{ref.port}"
        if ref.manifest.files and (what := _wrong_digest(ref.manifest)) is not None:
            yield Fault(link.node, where, what)
        parent = chain.by_key.get(ref.key)
        if parent is not None and (what := _not_the_output(ref, parent)) is not None:
            yield Fault(link.node, where, what)


def _not_the_output(ref: InputRef, parent: Link) -> str | None:
    output = parent.result.outputs.get(ref.port)
    if output is None:
        return f"{parent.node} has no output of that name"
    if output.digest != ref.manifest.digest:
        return f"it read {ref.manifest.digest}, and {parent.node} has {output.digest} now"
    return None


# --- files ------------------------------------------------------------------------------------------------------------


def _files(ledger: Ledger, verdict: Verdict, deep: bool) -> None:
    """Check the objects of a chain, each once, and count them."""
    files = {file.object: file for file in _contents(verdict.chain)}
    verdict.files = len(files)
    if not deep:
        lost = {name for link in verdict.chain.links for name in ledger.missing_objects(link.result)}
        verdict.faults += [
            Fault(file.node, file.link, f"{ledger.store.where(file.object)} is lost, has another size, or is damaged")
            for file in files.values()
            if file.object in lost
        ]
        return
    files |= {file.object: file for file in _metrics(ledger, verdict.chain)}
    with ThreadPoolExecutor(READERS) as pool:
        verdict.faults += [fault for fault in pool.map(partial(_file, ledger), files.values()) if fault]
    verdict.bytes = sum(file.size for file in files.values())


def _contents(chain: Chain) -> Iterator[_File]:
    """The files of the artifacts that a chain is made of."""
    for link, port, manifest in chain.artifacts():
        for entry in manifest.files:
            yield _File(link.node, f"output {port}, file {entry.path}", entry.object, entry.size, entry.sha256)


def _metrics(ledger: Ledger, chain: Chain) -> Iterator[_File]:
    """The metric rows whose digest was written down."""
    for link in chain.links:
        name = link.result.metrics_object
        if name is not None and (digests := _digests(ledger, link)) is not None:
            yield _File(link.node, "metric rows", name, 0, digests.get(name, "none"))


def _file(ledger: Ledger, file: _File) -> Fault | None:
    """What is wrong with the bytes of one object."""
    where = ledger.store.where(file.object)
    try:
        digest = ledger.store.digest(file.object)
    except Damaged:
        return Fault(file.node, file.link, f"{where} is not in the store")
    if digest == file.sha256:
        return None
    return Fault(file.node, file.link, f"{where} has the SHA-256 {digest} instead of {file.sha256}")


def require_node(chain: Chain, name: str) -> Link:
    """The link that a node of a chain made. Raises ConfigError naming the nodes that there are."""
    for link in chain.links:
        if link.node == name:
            return link
    raise ConfigError(f"{chain.node} does not follow from '{name}'; it follows from: {_names(chain.links)}")


def _names(links: Iterable[Link]) -> str:
    return ", ".join(dict.fromkeys(link.node for link in links))
