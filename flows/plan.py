"""The plan: pipeline x profile x ledger -> what each node's state is and why. Knows neither Prefect nor a launcher."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, cast

from flows.profiles import Profile
from stages.core.errors import ConfigError
from stages.core.graph import Node, Pipeline
from stages.core.keys import source_digest, stage_key
from stages.core.ledger import Ledger
from stages.core.messages import InputRef, StageResult
from stages.core.records import DamagedRecord, LeaseRecord
from stages.core.stage import Facets

ADOPTED = "adopt"
"""Stage of a result that others made (flows/outside.py)."""
LOOKUPS = 8
"""Nodes that are looked up in the ledger at the same time."""


class State(enum.StrEnum):
    """What a run would do with a node."""

    CACHED = "cached"  # the ledger has its result
    DRIFT = "drift"  # it has, but other code made it
    RUN = "run"
    RESUME = "resume"  # a checkpoint of this key is there
    PENDING = "pending"  # its key depends on results that are not there yet
    BLOCKED = "blocked"  # an input is neither there nor selected
    LEASED = "leased"  # somebody works on this key now
    DAMAGED = "damaged"  # a record of it cannot be read: nothing is written over it unless that is asked for


@dataclass(frozen=True)
class Resolved:
    """A node whose inputs are known: its key, and what the ledger says of it."""

    key: str
    inputs: dict[str, tuple[InputRef, ...]]
    result: StageResult | None
    etag: str | None
    drift: bool
    missing: Sequence[str] = ()
    damaged: str = ""
    """Why the record of its result cannot be read."""
    given: bool = False
    """Whether the settings name this result, whatever it was made from."""


@dataclass(frozen=True)
class NodePlan:
    """One row of the plan."""

    node: Node
    state: State
    reason: str
    will_run: bool
    selected: bool
    resolved: Resolved | None = None
    step: int | None = None
    facets: Mapping[str, Facets] = field(default_factory=dict[str, Facets])

    @property
    def key(self) -> str | None:
        return self.resolved.key if self.resolved else None

    def row(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "name": self.node.name,
            "stage": self.node.stage,
            "state": self.state.value,
            "step": self.step,
            "key": self.key,
            "reason": self.reason,
            "will_run": self.will_run,
        }


def resolve(
    node: Node, profile: Profile, ledger: Ledger, results: Mapping[str, StageResult], deep: bool = False
) -> Resolved:
    """Compute a node's key from its parents' results, check facets, and look the key up. Raises ConfigError.

    deep: look for every file, also of what has an index.
    """
    if node.name in profile.settings.adopt:
        return adopted(node, profile, ledger)
    config = profile.configs[node.name]
    node = node.under(config)
    inputs: dict[str, tuple[InputRef, ...]] = {}
    for port, sources in node.wires.items():
        refs: list[InputRef] = []
        for source in sources:
            parent = results[source.node.name]
            if source.port not in parent.outputs:  # an adopted one may have less than its node would make
                raise ConfigError(
                    f"node {node.name} reads {source.port} of {parent.node}, but its result {parent.key[:12]} has"
                    f" {', '.join(parent.outputs)} only"
                )
            refs.append(
                InputRef(
                    node=source.node.name,
                    key=parent.key,
                    port=source.port,
                    manifest=parent.outputs[source.port].reference(),
                )
            )
        inputs[port] = tuple(refs)
    node.check_facets(node.name, config, {p: [(r.node, r.manifest.facets) for r in refs] for p, refs in inputs.items()})
    digests = {port: [r.manifest.digest for r in refs] for port, refs in inputs.items()}
    key = stage_key(node.stage, node.revision, config.identity(), digests)
    try:
        stored = ledger.manifest(key)
    except DamagedRecord as error:
        return Resolved(key, inputs, None, error.etag, False, damaged=str(error))
    if stored is None:
        node.check_inputs(node.name, config, {port: [ref.manifest for ref in refs] for port, refs in inputs.items()})
        return Resolved(key, inputs, None, None, False)
    result, etag = stored
    drift = result.code.source_digest != source_digest(node.stage)
    return Resolved(key, inputs, result, etag, drift, ledger.missing_objects(result, deep))


def adopted(node: Node, profile: Profile, ledger: Ledger) -> Resolved:
    """The result that the settings name for a node. Raises ConfigError for one that cannot be used."""
    from flows.experiments.results import whole_key

    name = profile.settings.adopt[node.name]
    setting = f"adopt.{node.name} = {name}"
    key = whole_key(ledger, name, setting)
    stored = ledger.manifest(key)
    if stored is None:
        raise ConfigError(f"{setting}: there is no result of this key: adopt it again")
    result, etag = stored
    if result.node != node.name:
        raise ConfigError(f"{setting}: this is a result of {result.node}: adopt it for {node.name}")
    if lost := ledger.missing_objects(result):
        raise ConfigError(f"{setting}: {len(lost)} of its objects are lost (first: {lost[0]}): adopt it again")
    return Resolved(key, {}, result, etag, drift=False, given=True)


def origin(result: StageResult) -> str | None:
    """Where an adopted result comes from; None: a stage made it."""
    return str(result.config["place"]) if result.stage == ADOPTED else None


def rerun_reason(resolved: Resolved, on_drift: str, forced: bool) -> str | None:
    """Why a node must run although the ledger may know its key; None when the ledger's answer stands."""
    if resolved.given:
        return None
    if resolved.damaged:
        return "forced: the record of its last result is damaged" if forced else None
    if resolved.result is None:
        return "no result for this key"
    if forced:
        return "forced"
    if resolved.missing:
        return f"its result has {len(resolved.missing)} lost or damaged objects (first: {resolved.missing[0]})"
    if resolved.drift and on_drift == "rerun":
        return "its code changed since (drift)"
    return None


def make_plan(
    pipeline: Pipeline,
    profile: Profile,
    ledger: Ledger,
    selection: str | Iterable[str] = "full",
    force: bool = False,
    deep: bool = False,
) -> list[NodePlan]:
    """Plan the selected nodes, in pipeline order. Raises ConfigError on facets that disagree. deep: see `resolve`.

    A node is looked up as soon as its parents are: most of the time goes by waiting for the store.
    """
    pipeline = profile.wire(pipeline)
    selected = {n.name for n in pipeline.select(selection)}
    needed = selected | pipeline.ancestors(*selected)
    planned: dict[str, Future[NodePlan]] = {}

    def plan(node: Node) -> NodePlan:
        parents = {name: planned[name].result() for name in node.parents}
        return _plan_node(node, profile, ledger, parents, node.name in selected, force, deep)

    # nodes begin in pipeline order: of those that have begun one at least waits for no other
    with ThreadPoolExecutor(LOOKUPS, "plan") as threads:
        for node in pipeline:
            if node.name in needed:
                planned[node.name] = threads.submit(plan, node)
    return [future.result() for name, future in planned.items() if name in selected]


def answered(plans: Iterable[NodePlan]) -> dict[str, Resolved]:
    """By name, the nodes whose result the ledger has and that will not run."""
    return {p.node.name: p.resolved for p in plans if p.resolved and p.resolved.result and not p.will_run}


def _plan_node(
    node: Node,
    profile: Profile,
    ledger: Ledger,
    plans: Mapping[str, NodePlan],
    selected: bool,
    force: bool,
    deep: bool,
) -> NodePlan:
    if node.name in profile.settings.adopt:
        return _plan_adopted(node, adopted(node, profile, ledger), selected)
    config = profile.configs[node.name]
    parents = [plans[name] for name in node.parents]
    known = {port: [plans[s.node.name].facets.get(s.port, {}) for s in sources] for port, sources in node.wires.items()}
    named = {
        port: [(s.node.name, plans[s.node.name].facets.get(s.port, {})) for s in sources]
        for port, sources in node.wires.items()
    }
    node.check_facets(node.name, config, named)
    row = NodePlan(node, State.RUN, "", False, selected, facets=node.facets(config, known))
    if damaged := [p for p in parents if p.state is State.DAMAGED]:
        return replace(row, state=State.BLOCKED, reason=f"needs {damaged[0].node.name}, a record of which is damaged")
    if blocked := [p for p in parents if p.state is State.BLOCKED or (not p.selected and p.state is State.PENDING)]:
        first = blocked[0]
        why = "has lost objects" if first.resolved and first.resolved.missing else "has no result"
        why = f"has to be made anew ({first.reason})" if first.state is State.PENDING else why
        reason = f"needs {first.node.name}, which {why} and is not selected: select '+{node.name}'"
        return replace(row, state=State.BLOCKED, reason=reason)
    if waiting := [p for p in parents if p.will_run or p.state is State.PENDING]:
        reason = f"follows {', '.join(p.node.name for p in waiting)}"
        return replace(row, state=State.PENDING, reason=reason, will_run=selected)
    results = {p.node.name: p.resolved.result for p in parents if p.resolved and p.resolved.result}
    resolved = resolve(node, profile, ledger, results, deep)
    row = _plan_resolved(replace(row, resolved=resolved), resolved, profile, ledger, force)
    if resolved.result and not row.will_run:
        return replace(row, facets={port: manifest.facets for port, manifest in resolved.result.outputs.items()})
    return row


def _plan_adopted(node: Node, resolved: Resolved, selected: bool) -> NodePlan:
    assert resolved.result is not None
    place = origin(resolved.result)
    reason = f"adopted from {place}" if place else f"as adopt.{node.name} says; made {_date(resolved.result)}"
    facets: dict[str, Facets] = {port: manifest.facets for port, manifest in resolved.result.outputs.items()}
    return NodePlan(node, State.CACHED, reason, False, selected, resolved, facets=facets)


def _plan_resolved(row: NodePlan, resolved: Resolved, profile: Profile, ledger: Ledger, force: bool) -> NodePlan:
    """The row of a node whose key is known: what the ledger says of it."""
    node = row.node
    on_drift = profile.settings.on_drift if row.selected else "warn"
    reason = rerun_reason(resolved, on_drift, force and row.selected)
    if resolved.damaged and reason is None:
        why = f"{resolved.damaged}; '--force' sets it aside and runs the node"
        return replace(row, state=State.DAMAGED, reason=why)
    if reason is None:
        if not resolved.drift:
            return replace(row, state=State.CACHED, reason=f"made {_date(resolved.result)}")
        if on_drift == "fail":
            raise ConfigError(f"node {node.name}: its result was made by other code, and this profile forbids drift")
        return replace(row, state=State.DRIFT, reason="made by other code; kept")
    if resolved.result is None and not resolved.damaged:
        reason = explain_change(node, profile, resolved, ledger)
    if not row.selected:
        return replace(row, state=State.BLOCKED, reason=reason)
    try:
        held = ledger.lease(resolved.key)
    except DamagedRecord as error:
        return replace(row, state=State.DAMAGED, reason=str(error))
    if held is not None and held[0].live:
        return replace(row, state=State.LEASED, reason=_held(held[0]), will_run=True)
    if resolved.result is not None and resolved.drift and not force:
        return replace(row, state=State.DRIFT, reason=reason, will_run=True)
    steps = ledger.checkpoint_steps(resolved.key) if node.checkpoints and resolved.result is None else []
    if steps:
        reason = f"a checkpoint at step {steps[-1]} is there; {reason}"
        return replace(row, state=State.RESUME, reason=reason, will_run=True, step=steps[-1])
    return replace(row, state=State.RUN, reason=reason, will_run=True)


def _date(result: StageResult | None) -> str:
    return result.attempt.ended_at[:19].replace("T", " ") + " UTC" if result else ""


def _held(record: LeaseRecord) -> str:
    return f"{record.holder} works on it (epoch {record.epoch})"


def explain_change(node: Node, profile: Profile, resolved: Resolved, ledger: Ledger) -> str:
    """In words: what differs between a node's last result in this profile and what a run would make now."""
    try:
        record = ledger.node(profile.names, node.name)
        if record is None and profile.experiment:  # told by what its profile has
            record = ledger.node(profile.name, node.name)
        last = ledger.manifest(record.key) if record else None
    except DamagedRecord as error:
        return f"what it ran with last cannot be told: {error}"
    if record is None:
        return "never ran in this profile"
    differing = changes(node, profile, resolved, last[0]) if last else []
    return "; ".join(differing) or "its last result is gone from the store"


def changes(node: Node, profile: Profile, resolved: Resolved, last: StageResult) -> list[str]:
    """Each difference between a last result and the present, as one phrase."""
    if place := origin(last):
        return [f"its last result was adopted from {place}"]
    phrases: list[str] = []
    if last.revision != node.revision:
        phrases.append(f"revision {last.revision} -> {node.revision}")
    phrases.extend(differences("", last.identity, profile.configs[node.name].identity()))
    for port, refs in resolved.inputs.items():
        before = last.inputs.get(port, ())
        if [r.manifest.digest for r in before] != [r.manifest.digest for r in refs]:
            names = [
                r.node
                for r, b in zip(refs, [*before, *[None] * len(refs)], strict=False)
                if b is None or b.manifest.digest != r.manifest.digest
            ]
            phrases.append(f"input {port} changed" + (f" (from {', '.join(names)})" if names else ""))
    return phrases


def differences(path: str, old: Any, new: Any) -> list[str]:
    """Each setting that differs between two configurations, as 'path old -> new'."""
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = cast("dict[str, Any]", old), cast("dict[str, Any]", new)
        return [
            row
            for key in dict.fromkeys([*before, *after])
            for row in differences(f"{path}.{key}" if path else key, before.get(key), after.get(key))
        ]
    return [] if old == new else [f"{path} {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
