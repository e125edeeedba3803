"""Chains of results without a store, for what reads them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.release.chain import Chain, Link
from stages.core.artifacts import Artifact, ArtifactManifest, FileEntry
from stages.core.keys import artifact_digest, sha256, stage_key
from stages.core.messages import Attempt, CodeRef, InputRef, StageResult

ATTEMPT = Attempt(
    run_id="run-1",
    epoch=1,
    started_at="2026-01-02T03:04:05.000+00:00",
    ended_at="2026-01-02T03:05:05.000+00:00",
    wall_seconds=60,
    cpu_seconds=60,
    peak_rss_bytes=1,
    bytes_in=0,
    bytes_out=0,
)


def artifact(type: str, **files: str) -> ArtifactManifest:
    """An artifact of small texts; `__` in a name stands for a dot."""
    assert type in Artifact.registry
    entries = tuple(
        FileEntry(path=n.replace("__", "."), size=len(t), sha256=sha256(t.encode()), object=f"objects/{n}")
        for n, t in files.items()
    )
    return ArtifactManifest(type=type, digest=artifact_digest(type, {}, entries), facets={}, files=entries)


def result(
    node: str,
    stage: str,
    outputs: Mapping[str, ArtifactManifest],
    inputs: Sequence[tuple[StageResult, str]] = (),
    config: Mapping[str, Any] | None = None,
    stats: Mapping[str, Any] | None = None,
) -> StageResult:
    """A result. inputs: (result, port) of what it read, each on a port of that name."""
    refs: dict[str, tuple[InputRef, ...]] = {}
    for parent, port in inputs:
        ref = InputRef(node=parent.node, key=parent.key, port=port, manifest=parent.outputs[port])
        refs[port] = (*refs.get(port, ()), ref)
    digests = {port: [ref.manifest.digest for ref in many] for port, many in refs.items()}
    settings = {"seed": 1, **(config or {})}
    return StageResult(
        key=stage_key(stage, 1, settings, digests),
        node=node,
        stage=stage,
        revision=1,
        config=settings,
        identity=settings,
        inputs=refs,
        outputs=dict(outputs),
        stats=dict(stats or {}),
        code=CodeRef(source_digest="5" * 64, git_commit="c" * 40),
        attempt=ATTEMPT,
    )


def chain_of(*results: StageResult, profile: str = "test") -> Chain:
    """The chain of the last one."""
    links = tuple(Link(one, sha256(one.model_dump_json().encode())) for one in results)
    return Chain(results[-1].node, profile, links)
