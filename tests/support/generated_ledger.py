"""A pipeline of any number of nodes, layered as the real one is, and a ledger that has their results: for what grows
with either.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stages.probe_shards.spec import Shards
from stages.probe_source.spec import Source
from stages.probe_tokenizer.spec import Vocabulary
from stages.probe_train.spec import Train

from flows.profiles import Profile
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.graph import Node, Pipeline
from stages.core.keys import artifact_digest, canonical_json, sha256, source_digest, stage_key
from stages.core.leases import NODE_MARK
from stages.core.ledger import DIGESTS, Ledger, attempt_prefix
from stages.core.messages import Attempt, CodeRef, InputRef, StageResult
from stages.core.records import AttemptRecord, LeaseRecord, NodeRecord, sealed

GROUP, LANES = 10, 12
"""Nodes of a group (sources, shards, four trainings), and groups beside each other; a group's trainings go on from
those of the group before in its lane.
"""
DAY = "2026-01-01T00:00:00+00:00"


def layered_pipeline(count: int) -> Pipeline:
    """So many nodes (a multiple of `GROUP`), two to three edges each."""
    nodes: list[Node] = []
    before: dict[int, tuple[Vocabulary, list[Source], Train]] = {}
    for number in range(count // GROUP):
        sources = [Source(name=f"source_{number}_{one}") for one in range(3)]
        there = before.get(number % LANES)
        if there is None:
            vocabulary = Vocabulary(name=f"vocabulary_{number}", documents=[one.documents for one in sources])
            nodes += [*sources, vocabulary]
        else:
            vocabulary = there[0]
            sources.append(Source(name=f"source_{number}_3"))
            nodes += sources
        read = [one.documents for one in (*sources, *(there[1][:2] if there else ()))]
        shards = [
            Shards(name=f"shards_{number}_{i}", documents=read[i:], tokenizer=vocabulary.tokenizer) for i in range(2)
        ]
        parent, trained = there[2].model if there else None, list[Train]()
        for i in range(4):
            ports = {"shards": shards[i % 2].shards, "tokenizer": vocabulary.tokenizer, "parent": parent}
            trained.append(Train(name=f"train_{number}_{i}", **ports))
            parent = trained[0 if i < 2 else i].model
        nodes += [*shards, *trained]
        before[number % LANES] = (vocabulary, sources, trained[-1])
    return Pipeline(nodes)


def profile_text(pipeline: Pipeline, generation: int = 0) -> str:
    """A profile under which no two nodes have the same key, another one for each generation."""
    sources = [node.name for node in pipeline if node.stage == "probe_source"]
    return "".join(f'[node.{name}]\ntext = "{name}, {generation}"\n' for name in sources)


class Filler:
    """Writes results as runs leave them, without any run."""

    def __init__(self, ledger: Ledger, threads: int = 16) -> None:
        self.ledger, self.threads = ledger, threads

    def fill(self, pipeline: Pipeline, profile: Profile, run_id: str, failed: int = 0) -> dict[str, StageResult]:
        """The results of every node under these settings. failed: each so many-th node had an attempt before, which
        left a file; 0: none.
        """
        results: dict[str, StageResult] = {}
        rows: list[tuple[str, bytes]] = []
        for number, node in enumerate(profile.wire(pipeline)):
            epoch = 2 if failed and number % failed == 0 else 1
            result = results[node.name] = _result(node, profile, results, run_id, epoch)
            rows += _objects(result)
            rows += [(f"nodes/{profile.names}/{node.name}.json", sealed(_name(result)))]
            rows += itertools.chain(*(_attempt(result, one, ok=one == epoch) for one in range(1, epoch + 1)))
        with ThreadPoolExecutor(self.threads) as pool:
            for _ in pool.map(lambda row: self.ledger.store.put(*row), rows):
                pass
        return results


def _result(node: Node, profile: Profile, results: Mapping[str, StageResult], run_id: str, epoch: int) -> StageResult:
    config = profile.configs[node.name]
    inputs = {port: tuple(_ref(results[s.node.name], s.port) for s in sources) for port, sources in node.wires.items()}
    digests = {port: [ref.manifest.digest for ref in refs] for port, refs in inputs.items()}
    key = stage_key(node.stage, node.revision, config.identity(), digests)
    known = {port: [ref.manifest.facets for ref in refs] for port, refs in inputs.items()}
    outputs: dict[str, ArtifactManifest] = {}
    for port, kind in node.outputs(config).items():
        body = f"{key} {port}".encode()
        facets: dict[str, Any] = {n: v for n, v in node.facets(config, known).get(port, {}).items() if v is not None}
        facets |= {"tokenizer_digest": key} if kind == "Tokenizer" else {}
        name = f"objects/{node.stage}/{key}/{epoch:06d}/{port}/part.txt"
        files = (FileEntry(path="part.txt", size=len(body), sha256=sha256(body), object=name),)
        digest = artifact_digest(kind, facets, files)
        outputs[port] = ArtifactManifest(type=kind, digest=digest, facets=facets, files=files)
    return StageResult(
        key=key, node=node.name, stage=node.stage, revision=node.revision, config=config.model_dump(mode="json"),
        identity=config.identity(), inputs=inputs, outputs=outputs, stats={"rows": 1},
        code=CodeRef(source_digest=source_digest(node.stage)),
        attempt=Attempt(
            run_id=run_id, epoch=epoch, started_at=DAY, ended_at=DAY, wall_seconds=1, cpu_seconds=1, peak_rss_bytes=1,
            bytes_in=1, bytes_out=1,
        ),
    )  # fmt: skip


def _ref(result: StageResult, port: str) -> InputRef:
    return InputRef(node=result.node, key=result.key, port=port, manifest=result.outputs[port].reference())


def _name(result: StageResult) -> NodeRecord:
    return NodeRecord(node=result.node, key=result.key, run_id=result.attempt.run_id, at=DAY)


def _objects(result: StageResult) -> Iterator[tuple[str, bytes]]:
    """What a published key has: files, digests, manifest, a lease that was given back."""
    for port, manifest in result.outputs.items():
        for entry in manifest.files:
            yield entry.object, f"{result.key} {port}".encode()
    name, body = f"manifests/{result.key}.json", result.model_dump_json().encode()
    yield f"{attempt_prefix(result)}{DIGESTS}", canonical_json({name: sha256(body)})
    yield name, body
    lease = LeaseRecord(key=result.key, epoch=result.attempt.epoch, holder="", expires_at=0.0)
    yield f"leases/{result.key}.json", lease.model_dump_json().encode()


def _attempt(result: StageResult, epoch: int, ok: bool) -> Iterable[tuple[str, bytes]]:
    """What an attempt leaves: its record and mark, its log; one that failed, a file that nothing refers to."""
    record = AttemptRecord(
        key=result.key, epoch=epoch, node=result.node, run_id=result.attempt.run_id, launcher="process", started_at=DAY,
        ended_at=DAY, exit_class="ok" if ok else "preempted",
    )  # fmt: skip
    path = f"attempts/{result.key}/{epoch:06d}"
    left = () if ok else ((f"objects/{result.stage}/{result.key}/{epoch:06d}/left/part.txt", b"left"),)
    mark = f"{path}{NODE_MARK}{result.node}"
    return [(f"{path}.json", sealed(record)), (mark, b""), (f"{path}.log.jsonl", b"{}\n"), *left]
