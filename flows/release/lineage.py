"""A model with everything that it was made from, as the ledger knows it; refused where that is not one whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from flows.family import Family, FamilyModel
from flows.plan import ADOPTED
from stages.core.artifacts import ArtifactManifest
from stages.core.errors import ConfigError
from stages.core.keys import source_digest
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.records import NodeRecord

MODEL, REPORT = "Model", "EvalReport"
"""Artifact types."""
CORPORA = ("Documents", "Conversations", "Preferences", "Problems", "ImageConversations", "EvalSuite", "ImageSuite")
"""Artifact types that hold data which a model learns from or is evaluated on."""


@dataclass(frozen=True)
class Lineage:
    """results: by node, each after all that it was made from; the model's own is the last one."""

    model: FamilyModel
    profile: str
    port: str
    results: Mapping[str, StageResult]

    @property
    def result(self) -> StageResult:
        """The result that holds the model."""
        return self.results[self.model.node]

    @property
    def artifact(self) -> ArtifactManifest:
        """The model's own artifact."""
        return self.result.outputs[self.port]

    @property
    def parameters(self) -> int | None:
        """Weights of the model, where its stage counted them."""
        return parameters(self.result)

    @property
    def training(self) -> list[StageResult]:
        """The results that are models, in order: each step of the training."""
        return [result for result in self.results.values() if _model_port(result)]

    @property
    def corpora(self) -> list[StageResult]:
        """The results that hold data, in order."""
        return [r for r in self.results.values() if any(out.type in CORPORA for out in r.outputs.values())]

    @property
    def name(self) -> str:
        """What the release is called: the family's name with this model's own size in the place of the paper's."""
        return sized(self.model.release, self.parameters)

    @property
    def drifted(self) -> list[str]:
        """Nodes whose stage has other code now than made their results."""
        by_stages = {node: r for node, r in self.results.items() if r.stage != ADOPTED}
        return [node for node, r in by_stages.items() if r.code.source_digest != source_digest(r.stage)]

    @property
    def toy(self) -> bool:
        """Whether some of its data was made on the machine that ran it."""
        return any(made_here(result) for result in self.results.values())


def parameters(result: StageResult) -> int | None:
    """Weights of a model, where its stage counted them."""
    metas = [out.meta for out in result.outputs.values() if out.type == MODEL]
    count = next((meta["parameters"] for meta in metas if "parameters" in meta), result.stats.get("parameters"))
    return int(count) if count else None


def sized(name: str, weights: int | None) -> str:
    """A name of the family with the size that a model really has: 'Moxin-7B-LLM' of 1,260,000 weights is
    'Moxin-1.3M-LLM'. The paper calls its 8.1 billion 7B, and so does this.
    """
    if weights is None or 7e9 <= weights < 9e9:
        return name
    unit, size = next(((u, s) for u, s in (("B", 1e9), ("M", 1e6), ("K", 1e3)) if weights >= s), ("", 1.0))
    count = weights / size
    return name.replace("-7B-", f"-{count:.{1 if count < 10 and unit else 0}f}{unit}-")


def table_of(value: Any) -> Mapping[str, Any]:
    """A table of a configuration or of statistics; anything else counts as an empty one."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def made_here(result: StageResult) -> bool:
    """Whether a node made its data on the machine that ran it, in the format of the real set."""
    return result.config.get("origin") == "machine" or any(
        table_of(source).get("origin") == "machine" for source in table_of(result.config.get("data_sets")).values()
    )


def trace_all(ledger: Ledger, profile: str, family: Family, nodes: list[str] | None = None) -> list[Lineage]:
    """The lineages of some models of the family, or of all that Table 9 lists. Raises ConfigError as `trace` does."""
    models = [family[node] for node in nodes] if nodes else family.released()
    records = ledger.nodes(profile)
    return [trace(ledger, profile, model, records) for model in models]


def trace(ledger: Ledger, profile: str, model: FamilyModel, records: Mapping[str, NodeRecord]) -> Lineage:
    """Follow a model's newest result back to the raw sources, by the keys that its inputs name.

    records: the newest result of every node of the profile. Raises ConfigError where there is no model, where
    something that it was made from is gone or is not the newest, and where two results of one node are behind it.
    """
    again = f"run 'moxin run --profile {profile} --select +{model.node}' first"
    if model.node not in records:
        raise ConfigError(f"{model.name}: node {model.node} has no result in profile '{profile}': {again}")
    results: dict[str, StageResult] = {}
    _walk(ledger, records[model.node].key, model.node, f"{model.name}: {{}}; {again}", results)
    for result in results.values():
        for ref in (ref for refs in result.inputs.values() for ref in refs):
            newest = ledger.manifest(records[ref.node].key) if ref.node in records else None
            if newest is None or newest[0].outputs[ref.port].digest != ref.manifest.digest:
                raise ConfigError(
                    f"{model.name}: {result.node} was made from another result of {ref.node} than the newest; {again}"
                )
    root = results[model.node]
    if lost := ledger.missing_objects(root):
        raise ConfigError(
            f"{model.name}: {len(lost)} objects of {model.node} are lost or damaged (first: {lost[0]}); {again}"
        )
    port = _model_port(root)
    if port is None:
        raise ConfigError(f"{model.name}: node {model.node} makes no model, but {', '.join(root.outputs)}")
    return Lineage(model, profile, port, results)


def _walk(ledger: Ledger, key: str, node: str, message: str, results: dict[str, StageResult]) -> None:
    stored = ledger.manifest(key, listed=True)
    if stored is None:
        raise ConfigError(message.format(f"the result {key[:12]} of {node} is gone from the store"))
    result = stored[0]
    for ref in (ref for refs in result.inputs.values() for ref in refs):
        known = results.get(ref.node)
        if known is None:
            _walk(ledger, ref.key, ref.node, message, results)
            known = results[ref.node]
        other = known.outputs.get(ref.port)
        if other is None or other.digest != ref.manifest.digest:
            raise ConfigError(
                message.format(
                    f"it was made from two results of {ref.node}: {ref.manifest.digest[:12]} (read by {node}) and"
                    f" {other.digest[:12] if other else 'another'}"
                )
            )
    results[node] = result


def _model_port(result: StageResult) -> str | None:
    return next((port for port, out in result.outputs.items() if out.type == MODEL), None)


def inputs(result: StageResult) -> Iterator[tuple[str, str, ArtifactManifest]]:
    """What a result was made from: (port, 'node.port', artifact)."""
    for port, refs in result.inputs.items():
        for ref in refs:
            yield port, f"{ref.node}.{ref.port}", ref.manifest


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted settings with their values."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from flat(table_of(item), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
