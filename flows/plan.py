"""The plan: pipeline x profile x ledger -> what each node's state is and why. Knows neither Prefect nor a launcher."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.profiles import Profile
from stages.core.contracts import ConfigError, Facets, InputRef, StageResult
from stages.core.graph import Node, Pipeline
from stages.core.keys import source_digest, stage_key
from stages.core.ledger import LeaseRecord, Ledger


class State(enum.StrEnum):
    """What a run would do with a node."""

    CACHED = "cached"  # the ledger has its result
    DRIFT = "drift"  # it has, but other code made it
    RUN = "run"
    RESUME = "resume"  # a checkpoint of this key is there
    PENDING = "pending"  # its key depends on results that are not there yet
    BLOCKED = "blocked"  # an input is neither there nor selected
    LEASED = "leased"  # somebody works on this key now


@dataclass(frozen=True)
class Resolved:
    """A node whose inputs are known: its key, and what the ledger says of it."""

    key: str
    inputs: dict[str, tuple[InputRef, ...]]
    result: StageResult | None
    etag: str | None
    drift: bool
    missing: Sequence[str] = ()


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
    facets: Mapping[str, Facets] = field(default_factory=dict)

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


def resolve(node: Node, profile: Profile, ledger: Ledger, results: Mapping[str, StageResult]) -> Resolved:
    """Compute a node's key from its parents' results, check facets, and look the key up. Raises ConfigError."""
    config = profile.configs[node.name]
    inputs: dict[str, tuple[InputRef, ...]] = {}
    for port, sources in node.wires.items():
        refs = []
        for source in sources:
            parent = results[source.node.name]
            refs.append(InputRef(node=source.node.name, key=parent.key, port=source.port, manifest=parent.outputs[source.port]))
        inputs[port] = tuple(refs)
    node.check_facets(node.name, config, {p: [(r.node, r.manifest.facets) for r in refs] for p, refs in inputs.items()})
    digests = {port: [r.manifest.digest for r in refs] for port, refs in inputs.items()}
    key = stage_key(node.stage, node.revision, config.identity(), digests)
    found = ledger.manifest(key)
    if found is None:
        return Resolved(key, inputs, None, None, False)
    result, etag = found
    drift = result.code.source_digest != source_digest(node.stage)
    return Resolved(key, inputs, result, etag, drift, ledger.missing_objects(result))


def rerun_reason(resolved: Resolved, on_drift: str, forced: bool) -> str | None:
    """Why a node must run although the ledger may know its key; None when the ledger's answer stands."""
    if resolved.result is None:
        return "no result for this key"
    if forced:
        return "forced"
    if resolved.missing:
        return f"its result has lost {len(resolved.missing)} objects (first: {resolved.missing[0]})"
    if resolved.drift and on_drift == "rerun":
        return "its code changed since (drift)"
    return None


def make_plan(
    pipeline: Pipeline, profile: Profile, ledger: Ledger, selection: str | Iterable[str] = "full", force: bool = False
) -> list[NodePlan]:
    """Plan the selected nodes, in pipeline order. Raises ConfigError on facets that disagree."""
    selected = {n.name for n in pipeline.select(selection)}
    needed = set(selected).union(*(pipeline.ancestors(name) for name in selected))
    plans: dict[str, NodePlan] = {}
    for node in pipeline:
        if node.name in needed:
            plans[node.name] = _plan_node(node, profile, ledger, plans, node.name in selected, force)
    return [plan for name, plan in plans.items() if name in selected]


def _plan_node(
    node: Node,
    profile: Profile,
    ledger: Ledger,
    plans: Mapping[str, NodePlan],
    selected: bool,
    force: bool,
) -> NodePlan:
    config = profile.configs[node.name]
    parents = [plans[name] for name in node.parents]
    known = {port: [plans[s.node.name].facets.get(s.port, {}) for s in sources] for port, sources in node.wires.items()}
    named = {
        port: [(s.node.name, plans[s.node.name].facets.get(s.port, {})) for s in sources] for port, sources in node.wires.items()
    }
    node.check_facets(node.name, config, named)
    predicted = node.facets(config, known)

    def plan(state: State, reason: str, will_run: bool, resolved: Resolved | None = None, step: int | None = None) -> NodePlan:
        facets = predicted
        if resolved and resolved.result and not will_run:
            facets = {port: manifest.facets for port, manifest in resolved.result.outputs.items()}
        return NodePlan(node, state, reason, will_run, selected, resolved, step, facets)

    if blocked := [p for p in parents if p.state is State.BLOCKED or (not p.selected and p.will_run)]:
        first = blocked[0]
        why = "has lost objects" if first.resolved and first.resolved.missing else "has no result"
        return plan(State.BLOCKED, f"needs {first.node.name}, which {why} and is not selected: select '+{node.name}'", False)
    if waiting := [p for p in parents if p.will_run or p.state is State.PENDING]:
        return plan(State.PENDING, f"follows {', '.join(p.node.name for p in waiting)}", selected)
    results = {p.node.name: p.resolved.result for p in parents if p.resolved and p.resolved.result}
    resolved = resolve(node, profile, ledger, results)
    on_drift = profile.settings.on_drift if selected else "warn"
    reason = rerun_reason(resolved, on_drift, force and selected)
    if reason is None:
        if resolved.drift:
            if on_drift == "fail":
                raise ConfigError(f"node {node.name}: its result was made by other code, and this profile forbids drift")
            return plan(State.DRIFT, "made by other code; kept", False, resolved)
        return plan(State.CACHED, f"made {_date(resolved.result)}", False, resolved)
    if resolved.result is None:
        reason = explain_change(node, profile, resolved, ledger)
    if not selected:
        return plan(State.BLOCKED, reason, False, resolved)
    held = ledger.lease(resolved.key)
    if held is not None and held[0].live:
        return plan(State.LEASED, _held(held[0]), True, resolved)
    if resolved.result is not None and resolved.drift and not force:
        return plan(State.DRIFT, reason, True, resolved)
    steps = ledger.checkpoint_steps(resolved.key) if node.checkpoints and resolved.result is None else []
    if steps:
        return plan(State.RESUME, f"a checkpoint at step {steps[-1]} is there; {reason}", True, resolved, steps[-1])
    return plan(State.RUN, reason, True, resolved)


def _date(result: StageResult | None) -> str:
    return result.attempt.ended_at[:19].replace("T", " ") + " UTC" if result else ""


def _held(record: LeaseRecord) -> str:
    return f"{record.holder} works on it (epoch {record.epoch})"


def explain_change(node: Node, profile: Profile, resolved: Resolved, ledger: Ledger) -> str:
    """In words: what differs between a node's last result in this profile and what a run would make now."""
    record = ledger.node(profile.name, node.name)
    if record is None:
        return "never ran in this profile"
    last = ledger.manifest(record.key)
    found = changes(node, profile, resolved, last[0]) if last else []
    return "; ".join(found) or "its last result is gone from the store"


def changes(node: Node, profile: Profile, resolved: Resolved, last: StageResult) -> list[str]:
    """Each difference between a last result and the present, as one phrase."""
    found = []
    if last.revision != node.revision:
        found.append(f"revision {last.revision} -> {node.revision}")
    found.extend(differences("", last.identity, profile.configs[node.name].identity()))
    for port, refs in resolved.inputs.items():
        before = last.inputs.get(port, ())
        if [r.manifest.digest for r in before] != [r.manifest.digest for r in refs]:
            names = [r.node for r, b in zip(refs, [*before, *[None] * len(refs)], strict=False) if b is None or b.manifest.digest != r.manifest.digest]
            found.append(f"input {port} changed" + (f" (from {', '.join(names)})" if names else ""))
    return found


def differences(path: str, old: Any, new: Any) -> list[str]:
    """Each setting that differs between two configurations, as 'path old -> new'."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [row for key in keys for row in differences(f"{path}.{key}" if path else key, old.get(key), new.get(key))]
    return [] if old == new else [f"{path} {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


