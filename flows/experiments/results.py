"""Which results a profile, an experiment, settings or a key speak of."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

from flows.experiments import tags
from flows.plan import make_plan
from flows.profiles import Profile
from stages.core.errors import ConfigError
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.records import NodeRecord

SHORTEST = 6
"""Characters of a key at least."""


def of_nodes(ledger: Ledger, pipeline: Pipeline, values: Profile) -> dict[str, StageResult]:
    """The results of nodes, in pipeline order: where settings are given, those that they have; else the newest."""
    if _by_settings(values):
        plans = make_plan(pipeline, values, ledger)
        return {p.node.name: p.resolved.result for p in plans if p.resolved and p.resolved.result}
    records = ledger.nodes(values.names)
    names = [node.name for node in pipeline if node.name in records]
    with ThreadPoolExecutor(8) as pool:
        manifests = list(pool.map(ledger.manifest, [records[name].key for name in names]))
    return {name: manifest[0] for name, manifest in zip(names, manifests, strict=True) if manifest}


def records(
    ledger: Ledger, pipeline: Pipeline, values: Profile, names: Collection[str] | None = None
) -> dict[str, NodeRecord]:
    """Which result each node has: where settings are given, the one that they have; else the newest. names: of nodes
    that alone are asked for.
    """
    if not _by_settings(values):
        return ledger.nodes(values.names, names)
    return {
        name: NodeRecord(node=name, key=result.key, run_id=result.attempt.run_id, at=result.attempt.ended_at)
        for name, result in of_nodes(ledger, pipeline, values).items()
        if names is None or name in names
    }


def of_node(ledger: Ledger, pipeline: Pipeline, values: Profile, node: str, key: str = "") -> StageResult:
    """The result of one node. key: the first characters of another one's key, or its tag. Raises ConfigError where
    there is none.
    """
    for each in keys(ledger, pipeline, values, node, key, planned=_by_settings(values)):
        if (manifest := ledger.manifest(each)) is not None:
            if manifest[0].node != node and key:
                raise ConfigError(f"--key {key}: this result is {manifest[0].node}'s, not {node}'s")
            return manifest[0]
    raise ConfigError(
        f"node {node} has no result in {place(values)} yet: run it with '{command(values)} --select {node}'"
    )


def keys(
    ledger: Ledger, pipeline: Pipeline, values: Profile, node: str, key: str = "", planned: bool = True
) -> Iterator[str]:
    """The keys under which a node may have results or attempts, the likeliest first. planned: what a run would make
    now comes first, though it may not be there yet.
    """
    if key:
        yield whole_key(ledger, key)
        return
    if planned:
        yield from (p.key for p in make_plan(pipeline, values, ledger, f"+{node}") if p.node.name == node and p.key)
    if not _by_settings(values) and (record := ledger.node(values.names, node)):
        yield record.key


def whole_key(ledger: Ledger, key: str, given: str = "") -> str:
    """The key that begins so, or that has this tag. given: as the user wrote it. Raises ConfigError where there is
    none, or several.
    """
    given = given or f"--key {key}"
    if not set(key) <= tags.LIKE_A_KEY:
        return tags.opened(ledger, key).key
    if len(key) < SHORTEST:
        raise ConfigError(f"{given}: give {SHORTEST} characters of a key at least, as 'moxin ls' prints them")
    rows = [row.key for prefix in ("manifests/", "attempts/") for row in ledger.store.list(f"{prefix}{key}")]
    matching = sorted({row.split("/")[1].removesuffix(".json") for row in rows})
    if len(matching) != 1:
        raise ConfigError(f"{given}: {'no result or attempt has' if not matching else f'{len(matching)} have'} it")
    return matching[0]


def place(values: Profile) -> str:
    """Where one looked, in words."""
    if values.experiment:
        return f"experiment '{values.experiment}'"
    return f"profile '{values.name}'" + (f" with {', '.join(values.overrides)}" if values.overrides else "")


def command(values: Profile) -> str:
    """What makes results there."""
    if values.experiment:
        return f"moxin run --experiment {values.experiment}"
    changes = "".join(f" --set {override}" for override in values.overrides)
    return f"moxin run --profile {values.name}{changes}"


def _by_settings(values: Profile) -> bool:
    """Whether results are looked for by settings: an experiment's are found by its names."""
    return bool(values.overrides) and not values.experiment
