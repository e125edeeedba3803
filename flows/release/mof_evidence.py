"""What of a model is open, computed from what is really there: `mof.yml` of a release folder, and the class it gives.

A component counts where somebody who has the release can get it: a file of the folder or of the release around it, a
path of this repository, an address. What lies in the run's own store alone is not released, and is told as such.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from flows.family import FamilyModel
from flows.release import mof_classes, statement
from flows.release.chain import Chain, Link, listing, newest_key
from flows.release.lineage import table_of
from stages.core.errors import ConfigError, InputError
from stages.core.files import ROOT, write_atomically
from stages.core.ledger import Ledger
from stages.core.messages import StageResult

SUITES = ("EvalSuite", "ImageSuite")
LISTING, LISTING_BYTES = "suite.json", 16_000_000
"""The listing of a suite (stages/lib/formats/suites.py), which cannot be imported here; a larger one is not read."""
PUBLIC = {"hub": "hf://", "package": ""}
"""Origins of evaluation data that everybody has access to, and what stands before a name there."""
LOCK = "containers/embedded/requirements.lock"
ARCHITECTURE = {"vlm": "stages/lib/vision/modeling_moxin_vlm.py", "": "stages/lib/modeling/decoder.py"}
INFERENCE = {
    "vlm": "stages/evaluate_vlm/answering.py",
    "pretrain": "stages/lib/modeling/generate.py",
    "": "stages/lib/finetuning/generation.py",
}
"""Where the code is that defines and runs a model, by the stage that makes it ('': any other)."""
TREATMENT = {"pretrain": "pre-trained", "sft": "instruct fine-tuned", "dpo": "chat fine-tuned"}
REPORTS = ("report.html", "TECHNICAL_REPORT.md")


@dataclass(frozen=True)
class Part:
    """A component that is there: where, and under which licence ('': none is stated)."""

    path: str
    license: str = ""


@dataclass(frozen=True)
class Evidence:
    """What a model's openness is computed from.

    folder: the release, whose parent holds the other models and the data cards; evaluations: results of this very
    model; suites: the data sets of those evaluations, as (name, where it is from, licence).
    """

    folder: Path
    chain: Chain
    model: FamilyModel
    evaluations: Sequence[StageResult] = ()
    suites: Sequence[tuple[str, str, str]] = ()

    @property
    def stage(self) -> str:
        """The stage that made the model."""
        return self.chain.root.result.stage


def gather(ledger: Ledger, folder: Path, chain: Chain, model: FamilyModel) -> Evidence:
    """The evidence of a model, from the ledger. Raises InputError for a damaged record, InfraError."""
    digests = {manifest.digest for manifest in chain.root.result.outputs.values()}
    evaluations: list[StageResult] = []
    suites: list[tuple[str, str, str]] = []
    for node in model.evaluations:
        try:
            manifest = ledger.manifest(newest_key(ledger, chain.profile, node), listed=True)
        except ConfigError:  # it has not run
            continue
        refs = [ref for many in manifest[0].inputs.values() for ref in many] if manifest else []
        if manifest is None or not digests & {ref.manifest.digest for ref in refs}:
            continue
        evaluations.append(manifest[0])
        for ref in refs:
            if ref.manifest.type in SUITES:
                body = listing(ledger, ref.manifest, LISTING, LISTING_BYTES)
                suites += _suite(body) if body else [(f"{ref.node}.{ref.port}", "unknown", "")]
    return Evidence(folder, chain, model, tuple(evaluations), tuple(dict.fromkeys(suites)))


def _suite(body: bytes) -> list[tuple[str, str, str]]:
    """The data sets of a suite's listing: name, origin, licence."""
    try:
        return [(row["id"], row["origin"], row.get("license", "")) for row in json.loads(body)["data_sets"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{LISTING} of an evaluation's suite cannot be read: {error!r}") from error


# --- the components ---------------------------------------------------------------------------------------------------


def assess(evidence: Evidence) -> tuple[dict[str, Part], dict[str, str]]:
    """The components that are there, and why each of the others is not, by name."""
    parts: dict[str, Part] = {}
    absent: dict[str, str] = {}
    for name, look in _LOOKUPS.items():
        try:
            parts[name] = look(evidence)
        except _Absent as error:
            absent[name] = str(error)
    return parts, absent


class _Absent(Exception):
    """A component is not there; the message says why."""


def _repository(paths: Iterable[str]) -> Part:
    """Code of this repository; only what exists is code."""
    paths = list(dict.fromkeys(paths))
    if missing := [path for path in paths if not (ROOT / path).exists()]:
        raise _Absent(f"this installation has no {missing[0]}")
    if not paths:
        raise _Absent("no stage of the run has such code")
    base = mof_classes.facts().repository
    located = [f"{base.rstrip('/')}/{path}" if base else path for path in paths]
    about = metadata.metadata("moxin")
    return Part(", ".join(located), about["License-Expression"] or "")


def _architecture(evidence: Evidence) -> Part:
    return _repository([ARCHITECTURE.get(evidence.stage, ARCHITECTURE[""])])


def _inference(evidence: Evidence) -> Part:
    return _repository([INFERENCE.get(evidence.stage, INFERENCE[""])])


def _trains(link: Link) -> bool:
    return any(manifest.type == "Model" for manifest in link.result.outputs.values())


def _training(evidence: Evidence) -> Part:
    return _repository(f"stages/{link.result.stage}" for link in evidence.chain.links if _trains(link))


def _preprocessing(evidence: Evidence) -> Part:
    return _repository(f"stages/{link.result.stage}" for link in evidence.chain.links if not _trains(link))


def _evaluation_code(evidence: Evidence) -> Part:
    if not evidence.evaluations:
        raise _Absent("the run has no evaluation of this model")
    return _repository(f"stages/{result.stage}" for result in evidence.evaluations)


def _libraries(evidence: Evidence) -> Part:
    path = LOCK if (ROOT / LOCK).is_file() else f"flows/_data/{LOCK}"
    return Part(_repository([path]).path)  # each library has a licence of its own


def _in_folder(*names: str) -> Callable[[Evidence], Part]:
    def look(evidence: Evidence) -> Part:
        paths = [name for name in names if (evidence.folder / name).is_file()]
        if not paths:
            raise _Absent(f"the release has no {' or '.join(names)}")
        return Part(", ".join(paths), evidence.model.license)

    return look


def _weights(evidence: Evidence) -> Part:
    names = sorted(path.name for path in evidence.folder.glob("*.safetensors"))
    if not names:
        raise _Absent("the release has no *.safetensors")
    return Part(names[0] if len(names) == 1 else "model.safetensors.index.json", evidence.model.license)


def _intermediate(evidence: Evidence) -> Part:
    """The models before this one, where they are released beside it."""
    before = {m.digest: link.node for link, _, m in evidence.chain.of_type("Model") if link is not evidence.chain.root}
    if not before:
        raise _Absent("no model of the run came before this one")
    beside = {digest: place for digest, place in _beside(evidence.folder) if digest in before}
    if not beside:
        names = ", ".join(before.values())
        raise _Absent(f"{names}: in the run's store alone; 'moxin release --model' releases a model of the family")
    return Part(", ".join(beside.values()), evidence.model.license)


def released(out: Path) -> list[dict[str, Any]]:
    """The models that are released in a folder, as JSON values: name, node, digest, class, what the next class lacks,
    and what is there. One whose papers cannot be read has a `problem` instead.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(out.glob("*/release.json")):
        if path.parent.name.startswith(".") or not (path.parent / mof_classes.FILE).is_file():
            continue
        row: dict[str, Any] = {"name": path.parent.name}
        try:
            about = json.loads(path.read_bytes())
            row |= {"node": str(about["node"]), "digest": str(about["digest"])}
            value = mof_classes.read(path.parent / mof_classes.FILE)
            openness = mof_classes.classify(value)
            row |= {"level": openness.level, "title": openness.title, "missing": dict(openness.missing)}
            row["components"] = [
                {key: str(part.get(key, "")) for key in ("name", "component_path", "license")}
                for part in value["release"]["components"]
            ]
        except (OSError, ValueError, KeyError, TypeError, InputError, ModuleNotFoundError) as error:
            row["problem"] = f"its papers cannot be read ({error})"
        rows.append(row)
    return rows


def _beside(folder: Path) -> Iterator[tuple[str, str]]:
    """The releases beside a folder: (digest of the model, path from the folder)."""
    for path in sorted(folder.parent.glob("*/release.json")):
        if path.parent == folder or path.parent.name.startswith("."):
            continue
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
            yield str(value["digest"]), f"../{path.parent.name}"
        except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
            continue  # none of ours


def _datasets(evidence: Evidence) -> Part:
    """The data, where all of it comes from an address; what a machine made for itself nobody else has."""
    links = evidence.chain.links
    if here := [link.node for link in links if _made_here(link.result.config)]:
        raise _Absent(f"{', '.join(here)}: made on the machine of the run, and in its store alone")
    if local := [link.node for link in links if _local(link.result.config)]:
        raise _Absent(f"{', '.join(local)}: read from files of the machine of the run")
    rows = list(statement.outside(links))
    if not rows:
        raise _Absent("no result of the run says where its data comes from")
    return Part(
        ", ".join(dict.fromkeys(row["uri"] for row in rows)),
        _together(row.get("annotations", {}).get("license", "") for row in rows),
    )


def _made_here(config: Mapping[str, Any]) -> bool:
    sets = table_of(config.get("data_sets")).values()
    return config.get("origin") == "machine" or any(table_of(row).get("origin") == "machine" for row in sets)


def _local(config: Mapping[str, Any]) -> bool:
    rows = [table_of(row) for port in statement.LISTS for row in config.get(port) or ()]
    return any(str(row.get("uri", "")).startswith("file:") for row in rows)


def _together(licenses: Iterable[str]) -> str:
    """The licences of things that are given away together, as one SPDX expression; '' where one has none."""
    spelled = [mof_classes.spdx(license) if license else "" for license in licenses]
    if not spelled or "" in spelled:
        return ""
    return " AND ".join(f"({one})" if " OR " in one else one for one in dict.fromkeys(spelled))


def _evaluation_data(evidence: Evidence) -> Part:
    if not evidence.suites:
        raise _Absent("the run has no evaluation of this model")
    if here := [name for name, origin, _ in evidence.suites if origin not in PUBLIC]:
        raise _Absent(f"{', '.join(here)}: not the public data sets, but data that the run made or had")
    return Part(
        ", ".join(f"{PUBLIC[origin]}{name}" for name, origin, _ in evidence.suites),
        _together(license for _, _, license in evidence.suites),
    )


def _results(evidence: Evidence) -> Part:
    if not evidence.evaluations:
        raise _Absent("the run has no evaluation of this model")
    return _in_folder("README.md")(evidence)


def _data_card(evidence: Evidence) -> Part:
    """Cards of the data that the model learned from, beside the models."""
    if (evidence.folder / "DATA_CARD.md").is_file():
        return Part("DATA_CARD.md", evidence.model.license)
    nodes = [link.node for link in evidence.chain.links]
    cards = [node for node in nodes if (evidence.folder.parent / "data" / node / "README.md").is_file()]
    if not cards:
        raise _Absent("the release has no card of the data: 'moxin release' writes one for each corpus")
    return Part(", ".join(f"../data/{node}/README.md" for node in cards), evidence.model.license)


def _report(evidence: Evidence) -> Part:
    for folder, prefix in ((evidence.folder, ""), (evidence.folder.parent, "../")):
        for name in REPORTS:
            if (folder / name).is_file():
                return Part(prefix + name, evidence.model.license)
    raise _Absent("the release has no report: 'moxin release' and 'moxin report --output report.html' write one")


def _paper(evidence: Evidence) -> Part:
    paper = mof_classes.facts().paper
    if not paper.address:
        raise _Absent("infra/openness.toml names no paper")
    return Part(paper.address, paper.license)


_LOOKUPS: Mapping[str, Callable[[Evidence], Part]] = {
    "Model architecture": _architecture,
    "Model parameters (Final)": _weights,
    "Model card": _in_folder("README.md"),
    "Data card": _data_card,
    mof_classes.REPORT: _report,
    "Evaluation results": _results,
    "Sample model outputs": _in_folder("samples.jsonl", "samples.md"),
    "Training code": _training,
    "Inference code": _inference,
    "Evaluation code": _evaluation_code,
    "Evaluation data": _evaluation_data,
    "Supporting libraries and tools": _libraries,
    "Datasets": _datasets,
    "Data preprocessing code": _preprocessing,
    "Model parameters (Intermediate)": _intermediate,
    mof_classes.PAPER: _paper,
    "Model metadata": _in_folder("config.json", statement.FILE),
}
"""How each component is looked for."""


# --- mof.yml ----------------------------------------------------------------------------------------------------------


def document(evidence: Evidence, name: str, parts: Mapping[str, Part]) -> dict[str, Any]:
    """The mof.yml of a model, as plain values: what is not there is left out of it, as the framework has it."""
    facts, result = mof_classes.facts(), evidence.chain.root.result
    rows: list[dict[str, Any]] = []
    for component in facts.component:
        if (part := parts.get(component.name)) is None:
            continue
        row = {"name": component.name, "description": component.description, "component_path": part.path}
        row["license"] = part.license or mof_classes.UNLICENSED
        rows.append(row | ({"license_path": "LICENSE"} if part.license == evidence.model.license else {}))
    return {
        "framework": dict(facts.framework),
        "release": {
            "name": name,
            "version": str(result.stats.get("parameters", "")),
            "date": result.attempt.ended_at[:10],
            "license": {"distribution": {"name": evidence.model.license, "path": "LICENSE"}},
            "type": "multimodal" if evidence.stage == "vlm" else "language",
            "architecture": "transformer decoder",
            "treatment": TREATMENT.get(evidence.stage, "instruct fine-tuned"),
            "origin": evidence.model.base or "",
            "producer": "The Moxin contributors",
            "contact": "",
            "repository": facts.repository,
            "huggingface": "",
            "components": rows,
        },
    }


def write(ledger: Ledger, folder: Path, chain: Chain, model: FamilyModel, name: str) -> mof_classes.Openness:
    """Write `mof.yml` into a release folder; the class that it gives, with what is missing for the next one. To be
    called when everything else but the statement and signatures is in the folder.

    Raises InputError for a damaged record, InfraError.
    """
    evidence = gather(ledger, folder, chain, model)
    parts, absent = assess(evidence)
    value = document(evidence, name, parts)
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    write_atomically(folder / mof_classes.FILE, text)
    return explained(mof_classes.classify(value), absent)


def explained(openness: mof_classes.Openness, absent: Mapping[str, str]) -> mof_classes.Openness:
    """A class with the reasons why components are not there."""
    lacking = {
        level: {name: absent.get(name, why) for name, why in rows.items()} for level, rows in openness.lacking.items()
    }
    return mof_classes.Openness(openness.level, lacking)


def read(folder: Path) -> mof_classes.Openness:
    """The class of a released folder, from its mof.yml. Raises InputError."""
    path = folder / mof_classes.FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {mof_classes.FILE}")
    return mof_classes.classify(mof_classes.read(path))
