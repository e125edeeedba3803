"""`moxin verify --rerun NODE`: one result of a chain made again from the same inputs and settings, and compared.

It is made under a key of its own, which nobody else works on, and everything under that key is removed afterwards: no
published result is touched. What is promised is the stage's to say (`Reproducible`, stages/core/stage.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flows.launch.base import Handle, Job, Launcher
from flows.release.chain import Link
from flows.stage_job import code_ref
from stages.core.artifacts import ArtifactManifest
from stages.core.errors import ConfigError, ExitClass, InfraError, InputError
from stages.core.graph import Node
from stages.core.keys import canonical_json, sha256, source_digest
from stages.core.ledger import Ledger
from stages.core.messages import InputRef, StageRequest, StageResult
from stages.core.registry import validated_config
from stages.core.resources import Resources

NAMED = 5
"""Files that differ, named one by one."""


@dataclass(frozen=True)
class Rerun:
    """How a result that was made again compares with the published one."""

    node: str
    promise: str
    """What the stage says of a second run."""
    differences: tuple[str, ...]
    """What is other than in the published result; empty: the same, bit for bit."""
    circumstances: tuple[str, ...]
    """What was other this time: code, packages, machine."""
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether the stage's promise holds, as far as this run can tell."""
        return not (self.promise == "bits" and self.differences)

    @property
    def line(self) -> str:
        """The comparison as one line."""
        same = "the same, bit for bit" if not self.differences else f"not the same: {'; '.join(self.differences)}"
        promise = {"bits": "the same bits on any machine", "no": "nothing"}.get(
            self.promise, f"the same bits on the {self.promise}"
        )
        other = f"; other than then: {', '.join(self.circumstances)}" if self.circumstances else ""
        return f"{self.node} made again in {self.seconds:.1f} s: {same} (its stage promises {promise}{other})"

    def row(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return {
            "node": self.node,
            "promise": self.promise,
            "same_bits": not self.differences,
            "kept": self.kept,
            "differences": list(self.differences),
            "circumstances": list(self.circumstances),
            "seconds": self.seconds,
        }


def rerun(
    ledger: Ledger, link: Link, node: Node, resources: Resources, launcher: Launcher, tell: Callable[[str], None]
) -> Rerun:
    """Make a result again and compare. node: as the pipeline wires it; tell: gets lines of the stage's log.

    Raises ConfigError where the stage here is not the one that made it, InputError or InfraError where it fails.
    """
    result = link.result
    if result.stage != node.stage or result.revision != node.revision:
        raise ConfigError(
            f"{link.node} was made by revision {result.revision} of stage {result.stage}, here is revision"
            f" {node.revision} of {node.stage}: check out {result.code.git_commit or 'the commit that made it'}"
        )
    again = _made_again(ledger, link, node, resources, launcher, tell)
    return Rerun(
        node=link.node,
        promise=node.reproducible,
        differences=tuple(_differences(result, again)),
        circumstances=tuple(_circumstances(result, again)),
        seconds=again.attempt.wall_seconds,
    )


def _made_again(
    ledger: Ledger, link: Link, node: Node, resources: Resources, launcher: Launcher, tell: Callable[[str], None]
) -> StageResult:
    key = sha256(canonical_json({"rerun of": link.result.key, "id": uuid.uuid4().hex}))
    config = validated_config(type(node), link.node, link.result.config)
    try:
        request = StageRequest(
            run_id=f"verify-{key[:12]}",
            node=link.node,
            stage=node.stage,
            revision=node.revision,
            key=key,
            lease=ledger.acquire(key, "moxin verify"),
            config=link.result.config,
            inputs={port: tuple(_where_it_lies(ledger, r) for r in refs) for port, refs in link.result.inputs.items()},
            outputs={port: manifest.type for port, manifest in link.result.outputs.items()},
            code=code_ref(node),
            store=ledger.store.address,
            replaces=None,
        )
        job = Job(request, resources, node.env, node.processes(config), node.interpreter(config))
        _follow(launcher.start(job), link.node, resources.grace_seconds, tell)
        manifest = ledger.manifest(key, listed=True)
        if manifest is None:
            raise InfraError(f"{link.node} said that it was done, but published nothing")
        return manifest[0]
    finally:
        _remove(ledger, node.stage, key)


def _where_it_lies(ledger: Ledger, ref: InputRef) -> InputRef:
    """An input whose producer has been made again since, with the same bytes, as it lies in the store now."""
    parent = ledger.manifest(ref.key)
    output: ArtifactManifest | None = parent[0].outputs.get(ref.port) if parent else None
    return (
        ref.model_copy(update={"manifest": output.reference()})
        if output and output.digest == ref.manifest.digest
        else ref
    )


def _follow(handle: Handle, node: str, grace: float, tell: Callable[[str], None]) -> None:
    """Wait for a job. Raises InputError or InfraError with the stage's own line when it fails.

    grace: seconds that it gets to stop when this is interrupted.
    """
    message = ""
    try:
        for event in handle.events():
            if event["event"] == "done":
                message = event["message"]
            elif event["event"] == "log" and event.get("level") != "debug":
                tell(f"{node}: {event['message']}")
        ended = ExitClass.from_code(handle.wait())
    except BaseException:
        handle.stop(grace)
        handle.wait()
        raise
    if ended is not ExitClass.OK:
        kind = InfraError if ended in (ExitClass.INFRA, ExitClass.OOM, ExitClass.PREEMPTED) else InputError
        raise kind(f"{node} could not be made again ({ended}): {message}")


def _remove(ledger: Ledger, stage: str, key: str) -> None:
    """Delete all that was written under the key of a rerun."""
    folders = (f"objects/{stage}/{key}/", f"attempts/{key}/", f"checkpoints/{key}/")
    names = [row.key for folder in folders for row in ledger.store.list(folder)]
    ledger.store.delete([f"manifests/{key}.json", *names, f"leases/{key}.json"])


def _differences(then: StageResult, again: StageResult) -> Iterator[str]:
    for port, manifest in then.outputs.items():
        other = again.outputs[port]
        if other.digest == manifest.digest:
            continue
        before, after = ({f.path: f.sha256 for f in m.files} for m in (manifest, other))
        paths = sorted(path for path in before | after if before.get(path) != after.get(path))
        facets = sorted(name for name in manifest.facets if manifest.facets[name] != other.facets.get(name))
        parts = [f"{len(paths)} of {len(before | after)} files ({', '.join(paths[:NAMED])})"] if paths else []
        parts += [f"facets {', '.join(facets)}"] if facets else []
        yield f"{port}: {', '.join(parts)}"


def _circumstances(then: StageResult, again: StageResult) -> Iterator[str]:
    if then.code.source_digest != source_digest(then.stage):
        yield "the stage's code"
    if then.code.packages_digest != again.code.packages_digest:
        yield "the installed packages"
    if then.code.image_digest != again.code.image_digest or then.code.image != again.code.image:
        yield "the image"
    if then.attempt.machine != again.attempt.machine:
        yield "the machine"
