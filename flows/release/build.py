"""`moxin release`: from the ledger to folders. Refuses before anything is written, where one of the models cannot be
released.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flows import cost
from flows.family import Family
from flows.profiles import Profile
from flows.release import (
    card,
    croissant,
    data_card,
    energy,
    evaluations,
    folder,
    licenses,
    mof_classes,
    papers,
    signing,
)
from flows.release.corpora import Corpus, describe
from flows.release.lineage import Lineage, inputs, sized, trace_all
from flows.release.overlap import read as read_overlap
from flows.release.weights import MAX_SHARD_BYTES, SUFFIX, Weights
from stages.core.errors import ConfigError, InputError
from stages.core.files import file_sha256, write_atomically
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.records import NodeRecord
from stages.core.resources import Resources

CONFIG = "config.json"
DATA = "data"
SHARE = 0.05
"""Share of the documents of known language from which on a card lists the language."""


@dataclass(frozen=True)
class Release:
    """What was written: the models, the data cards by node, and the models' classes of openness by name."""

    models: tuple[folder.Released, ...]
    data: Mapping[str, Path]
    openness: Mapping[str, mof_classes.Openness]


@dataclass(frozen=True)
class Target:
    """Where a release goes, and how. owner: whose repositories the cards name; key: a private key (EC, PEM) that signs
    statements and folders.
    """

    out: Path
    owner: str | None = None
    data_cards: bool = True
    max_shard_bytes: int = MAX_SHARD_BYTES
    key: Path | None = None


def prepare(ledger: Ledger, profile: str, family: Family, nodes: Sequence[str] = ()) -> list[Lineage]:
    """The models' lineages, all of one family: the same results behind them. Raises ConfigError."""
    lineages = trace_all(ledger, profile, family, list(nodes))
    names: dict[str, str] = {}
    for lineage in lineages:
        other = names.setdefault(lineage.name, lineage.model.node)
        if other != lineage.model.node:
            raise ConfigError(
                f"{other} and {lineage.model.node} would both be released as {lineage.name}: give one another name in"
                " infra/family.toml"
            )
        licenses.text(lineage.model.license)
    return lineages


def write(ledger: Ledger, profile: Profile, family: Family, lineages: Sequence[Lineage], target: Target) -> Release:
    """Write a folder for each model, and a card for each corpus behind them.

    Raises ConfigError where a folder is there that this did not write; InputError, InfraError.
    """
    records = ledger.nodes(profile.names)
    for lineage in lineages:
        folder.refuse_foreign(target.out / lineage.name)
    papers.check(target.key)
    cards = write_data_cards(ledger, lineages, target.out) if target.data_cards else {}
    levels: dict[str, mof_classes.Openness] = {}
    models = tuple(_write_model(ledger, profile, family, lineage, records, target, levels) for lineage in lineages)
    return Release(models, cards, levels)


def _write_model(
    ledger: Ledger,
    profile: Profile,
    family: Family,
    lineage: Lineage,
    records: Mapping[str, NodeRecord],
    target: Target,
    levels: dict[str, mof_classes.Openness],
) -> folder.Released:
    """Write one folder; its class of openness goes into `levels`."""
    scores = evaluations.read(ledger, lineage.model, lineage.artifact.digest, records)
    corpora = _learned_from(ledger, lineage)
    contamination = read_overlap(ledger, lineage, scores.digests, records)
    prices = cost.prices_of(profile)

    def texts(place: Path, laid: Weights) -> dict[str, str]:
        facts = card.Facts(
            lineage=lineage,
            architecture=_architecture(place, lineage.model.node),
            dtypes=laid.dtypes,
            parameters=laid.parameters,
            corpora=corpora,
            evaluations=scores,
            uses=_uses(lineage.results.values(), profile.resources, prices),
            gpu=_price_line(prices),
            base=_base(lineage, family),
            owner=target.owner,
            contamination=contamination.lines,
            overlaps=contamination.digests,
            languages=_languages(lineage.results.values()),
            files={path.name: file_sha256(path) for path in sorted(place.glob(f"*{SUFFIX}"))},
        )
        return {
            folder.CARD: card.render(facts),
            "LICENSE": licenses.text(lineage.model.license),
            licenses.NOTICES: licenses.notices(lineage.name, lineage.model.license, corpora, _adopted(lineage)),
        }

    def prove(place: Path) -> None:
        levels[lineage.name] = papers.write(ledger, place, profile.names, lineage.model, lineage.name, target.key)

    sign = None if target.key is None else partial(signing.sign, key=target.key)
    return folder.write(target.out, lineage, ledger.store, texts, prove, sign, target.max_shard_bytes)


def write_data_cards(ledger: Ledger, lineages: Iterable[Lineage], out: Path) -> dict[str, Path]:
    """`<out>/data/<node>/README.md` for every corpus behind some models. Raises ConfigError where such a file is not
    one of ours.
    """
    results = {
        result.node: result
        for lineage in lineages
        for result in (*lineage.corpora, *evaluations.suites(ledger, lineage.model, lineage.profile))
    }
    written: dict[str, Path] = {}
    for node, result in results.items():
        path = out / DATA / node / folder.CARD
        listings = data_card.read_listings(ledger, result)
        corpus = data_card.with_listings(describe(result), listings)
        text = data_card.render(result, corpus, listings)
        _refuse_foreign_card(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        if croissant.outputs(result):
            croissant.write(path.parent, result, _licenses(corpus))
        write_atomically(path.with_name(folder.MANIFEST), json.dumps(_listing(node, result, text), indent=2) + "\n")
        written[node] = path
    return written


def _licenses(corpus: Corpus) -> list[str]:
    """SPDX identifiers of what is in a corpus, as far as its rows state any."""
    stated = {mof_classes.spdx(name) for out in corpus.outputs for name in out.per_license or ()}
    return sorted(
        {part for name in stated for part in re.findall(r"[A-Za-z0-9][\w.+-]*", name)} - {"AND", "OR", "WITH"}
    )


def _learned_from(ledger: Ledger, lineage: Lineage) -> list[Corpus]:
    """The data that something behind the model has read; a suite that only evaluations read is none of it."""
    read = {source for result in lineage.results.values() for _, source, _ in inputs(result)}
    corpora: list[Corpus] = []
    for result in lineage.corpora:
        corpus = data_card.with_listings(describe(result), data_card.read_listings(ledger, result))
        outputs = tuple(out for out in corpus.outputs if f"{result.node}.{out.port}" in read)
        if outputs:
            corpora.append(replace(corpus, outputs=outputs))
    return corpora


def _listing(node: str, result: StageResult, text: str) -> dict[str, Any]:
    digests = {port: out.digest for port, out in result.outputs.items()}
    return {
        "schema_version": folder.SCHEMA, "node": node, "key": result.key, "digests": digests,
        "files": {folder.CARD: sha256(text.encode())},
    }  # fmt: skip


def _refuse_foreign_card(path: Path) -> None:
    if not path.exists():
        return
    listed: dict[str, Any] = (
        folder.read_manifest(path.parent) if path.with_name(folder.MANIFEST).is_file() else {"files": {}}
    )
    if listed["files"].get(folder.CARD) != file_sha256(path):
        raise ConfigError(f"{path} is there already, and is not as 'moxin release' wrote it: move it away")


def _architecture(place: Path, node: str) -> str:
    try:
        return str(json.loads((place / CONFIG).read_text(encoding="utf-8"))["architectures"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{node}: its {CONFIG} names no architecture ({error})") from error


def _uses(
    results: Iterable[StageResult], resources: Mapping[str, Resources], prices: Mapping[str, Any]
) -> list[energy.Use]:
    return [energy.use(result, resources[result.node], prices) for result in results]


def _price_line(prices: Mapping[str, Any]) -> str:
    gpu, cpu = prices["gpu"], prices["cpu"]
    watts = f", {gpu['watts']:g} W" if "watts" in gpu else ""
    return (
        f"{gpu['name']}: ${gpu['dollars_per_hour']:g} an hour{watts}; a core: ${cpu['dollars_per_core_hour']:g} an hour"
    )


def _base(lineage: Lineage, family: Family) -> str | None:
    """The nearest model that it was trained from and that is released, by its name; None: it has none."""
    node = lineage.model.base
    while node is not None:
        model = family[node]
        if model.table_9 and node in lineage.results:
            return sized(model.release, Lineage(model, "", "", lineage.results).parameters)
        node = model.base
    return None


def _languages(results: Iterable[StageResult]) -> list[str]:
    """Languages of a share of the documents above SHARE, as the stages that read them found, the commonest first."""
    counts: dict[str, int] = {}
    for result in results:
        languages: dict[str, int] = result.stats.get("languages") or {}
        for name, count in languages.items():
            counts[name] = counts.get(name, 0) + count
    total = sum(counts.values())
    common = [name for name, count in counts.items() if count >= SHARE * total and len(name) in (2, 3)]
    return sorted(common, key=lambda name: (-counts[name], name))


def _adopted(lineage: Lineage) -> list[tuple[str, str, str]]:
    """What others made: tokenizers, towers and classifiers that a node took as they are."""
    adopted: list[tuple[str, str, str]] = []
    for result in lineage.results.values():
        origin = result.config.get("origin")
        digest = next(iter(result.outputs.values())).digest
        if origin == "adopt":
            adopted.append((result.node, "a tokenizer", digest))
        elif origin == "weights":
            adopted.append((result.node, "vision towers", digest))
        elif result.config.get("model_sha256"):
            adopted.append((result.node, f"a classifier, SHA-256 {result.config['model_sha256']}", digest))
    return adopted
