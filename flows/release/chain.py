"""The chain behind a model: every result that it follows from, down to the raw sources, each named by its digests.

    chain = read(ledger, "tiny", "pretrain_3")
    chain.root.result.outputs["model"].digest

Links stand in the order in which they were made, the model last. `walk` goes on past what is broken, and says what;
`read` raises it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.core.artifacts import ArtifactManifest
from stages.core.errors import ConfigError, InputError
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.messages import InputRef, StageResult
from stages.core.records import DamagedRecord
from stages.core.store_errors import Damaged


@dataclass(frozen=True)
class Fault:
    """One place where a chain does not hold: the node, the link (a record, an input, a file), and what is wrong."""

    node: str
    link: str
    what: str

    @property
    def line(self) -> str:
        """The fault as one line."""
        return f"{self.node}: {self.link}: {self.what}"

    def row(self) -> dict[str, str]:
        """The fault as JSON values."""
        return {"node": self.node, "link": self.link, "what": self.what}


@dataclass(frozen=True)
class Link:
    """One result of a chain, and the SHA-256 of its manifest as it lies in the store."""

    result: StageResult
    manifest_sha256: str

    @property
    def node(self) -> str:
        """The node that made it."""
        return self.result.node

    @property
    def refs(self) -> list[tuple[str, InputRef]]:
        """Its inputs, each with the name of its place: `documents[1]`, or `model` where a port has one."""
        return [
            (f"{port}[{number}]" if len(refs) > 1 else port, ref)
            for port, refs in self.result.inputs.items()
            for number, ref in enumerate(refs)
        ]

    def row(self) -> dict[str, Any]:
        """The link as JSON values: all that it can be checked by without a store."""
        result = self.result
        return {
            "node": result.node,
            "stage": result.stage,
            "revision": result.revision,
            "key": result.key,
            "identity": result.identity,
            "manifest_sha256": self.manifest_sha256,
            "code": result.code.model_dump(mode="json", exclude_none=True),
            "started_at": result.attempt.started_at,
            "ended_at": result.attempt.ended_at,
            "inputs": {
                port: [
                    {"node": ref.node, "key": ref.key, "port": ref.port, "digest": ref.manifest.digest} for ref in refs
                ]
                for port, refs in result.inputs.items()
                if refs
            },
            "outputs": {port: artifact_row(manifest) for port, manifest in result.outputs.items()},
        }


@dataclass(frozen=True)
class Chain:
    """The links of a model, parents before what was made from them."""

    node: str
    profile: str
    links: tuple[Link, ...]

    @property
    def root(self) -> Link:
        """The model's own link."""
        return self.links[-1]

    @property
    def by_key(self) -> Mapping[str, Link]:
        """The links by the key of their results."""
        return {link.result.key: link for link in self.links}

    @property
    def sources(self) -> list[Link]:
        """The links that were made from no other: the raw sources."""
        return [link for link in self.links if not link.refs]

    def artifacts(self) -> list[tuple[Link, str, ArtifactManifest]]:
        """What the chain is made of: the outputs that a later link read, and all of the model's own link."""
        read_by_others = {(ref.key, ref.port) for link in self.links for _, ref in link.refs}
        return [
            (link, port, manifest)
            for link in self.links
            for port, manifest in link.result.outputs.items()
            if link is self.root or (link.result.key, port) in read_by_others
        ]

    def of_type(self, *types: str) -> list[tuple[Link, str, ArtifactManifest]]:
        """Those of `artifacts` that are of the given types."""
        return [row for row in self.artifacts() if row[2].type in types]


def artifact_row(manifest: ArtifactManifest) -> dict[str, Any]:
    """An artifact as JSON values, with all that its digest is made of."""
    files = [[file.path, file.size, file.sha256] for file in manifest.files]
    about = {"type": manifest.type, "digest": manifest.digest, "facets": dict(manifest.facets), "files": files}
    return about | ({"index": manifest.index.digest} if manifest.index else {})


def newest_key(ledger: Ledger, profile: str, node: str) -> str:
    """The key of a node's newest result. Raises ConfigError where there is none, DamagedRecord."""
    record = ledger.node(profile, node)
    if record is None:
        raise ConfigError(
            f"node {node} has no result in profile '{profile}' yet: run it with 'moxin run --select {node}'"
        )
    return record.key


def walk(ledger: Ledger, profile: str, node: str, key: str) -> tuple[Chain, list[Fault]]:
    """The chain of a key as far as it can be read, and the records that are gone or cannot be read. Raises
    InfraError.
    """
    links: dict[str, Link] = {}
    faults: list[Fault] = []
    seen: set[str] = set()
    stack: list[tuple[str, str, bool]] = [(key, node, False)]
    while stack:  # not by recursion: a chain may be longer than the interpreter's stack
        at, name, parents_done = stack.pop()
        if parents_done or at in seen:
            if parents_done and at in links:
                links[at] = links.pop(at)  # after its parents
            continue
        seen.add(at)
        link, fault = _link(ledger, at, name)
        if link is None:
            faults.append(Fault(name, f"record manifests/{at}.json", fault))
            continue
        links[at] = link
        stack.append((at, name, True))
        stack += [(ref.key, ref.node, False) for _, ref in reversed(link.refs)]
    return Chain(node, profile, tuple(links.values())), faults


def _link(ledger: Ledger, key: str, node: str) -> tuple[Link | None, str]:
    """A link, or why there is none."""
    try:
        manifest, digest = ledger.manifest(key, listed=True), ledger.manifest_digest(key)
    except (DamagedRecord, Damaged) as error:
        return None, str(error)
    if manifest is None or digest is None:
        return None, f"the result of {node} is not in the store"
    return Link(manifest[0], digest), ""


def read(ledger: Ledger, profile: str, node: str) -> Chain:
    """The chain of a node's newest result. Raises InputError naming the first link that cannot be read, ConfigError
    where the node has no result, InfraError.
    """
    chain, faults = walk(ledger, profile, node, newest_key(ledger, profile, node))
    if faults:
        raise InputError(f"{faults[0].line}; 'moxin verify {node}' tells the rest")
    return chain


def listing(ledger: Ledger, manifest: ArtifactManifest, path: str, most: int) -> bytes | None:
    """A small file of an artifact, checked against its SHA-256; None: there is none, or it has more than `most` bytes.
    Raises InputError when its bytes are others.
    """
    entry = next((file for file in manifest.files if file.path == path and file.size <= most), None)
    stored = ledger.store.get(entry.object) if entry else None
    if entry is None or stored is None:
        return None
    if sha256(stored[0]) != entry.sha256:
        raise InputError(f"{ledger.store.where(entry.object)} is not what was published (another SHA-256)")
    return stored[0]
