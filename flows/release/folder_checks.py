"""`moxin verify FOLDER`: a released model against its own papers, without a store.

Its files against release.json, the statement of provenance and the signature; the statement against itself: every key
of its chain and every artifact's digest is computed again, down to the raw sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from flows.release import signing, statement
from flows.release.chain import Fault
from stages.core.artifacts import FileEntry
from stages.core.errors import ConfigError, InputError
from stages.core.files import file_sha256
from stages.core.index import index_digest
from stages.core.json_text import parsed_json
from stages.core.keys import artifact_digest, stage_key

MANIFEST = "release.json"
PAPERS = (MANIFEST, statement.FILE, statement.ENVELOPE, signing.SIGNATURE)
"""What a statement is not about: written after it, or itself."""
REWRITTEN = ("README.md", "model.safetensors.index.json")
"""Files of a model's artifact that a release writes anew."""


@dataclass
class FolderVerdict:
    """What a verification of a folder saw."""

    folder: Path
    faults: list[Fault] = field(default_factory=list[Fault])
    notes: list[str] = field(default_factory=list[str])
    digests: Mapping[str, str] = field(default_factory=dict[str, str])
    """SHA-256 of every file, by path."""
    results: int = 0
    """Of the chain that the statement tells."""
    bytes: int = 0

    def row(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "folder": str(self.folder),
            "node": self.folder.name,
            "ok": not self.faults,
            "results": self.results,
            "files": len(self.digests),
            "bytes_read": self.bytes,
            "faults": [fault.row() for fault in self.faults],
            "notes": self.notes,
        }


def verify(folder: Path, public_key: Path | None = None) -> FolderVerdict:
    """Check a released folder. public_key: checks its signatures too.

    Raises ConfigError where the folder has no papers to be checked against, or the key cannot be read.
    """
    if not any((folder / name).is_file() for name in PAPERS):
        raise ConfigError(f"{folder} is no release: it has none of {', '.join(PAPERS)}")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _ignored(path.relative_to(folder))]
    verdict = FolderVerdict(
        folder,
        digests={path.relative_to(folder).as_posix(): file_sha256(path) for path in paths},
        bytes=sum(path.stat().st_size for path in paths),
    )
    _manifest(verdict)
    _statement(verdict, public_key)
    _signature(verdict, public_key)
    return verdict


def _ignored(path: Path) -> bool:
    return path.parts[0] in signing.UNSIGNED or path.name.startswith(".git")


def _compare(verdict: FolderVerdict, listed: Mapping[str, str], paper: str) -> None:
    """The folder's files against a list of digests."""
    for path in sorted(listed.keys() | (verdict.digests.keys() - set(PAPERS))):
        digest = verdict.digests.get(path)
        if path not in listed:
            verdict.faults.append(Fault(paper, f"file {path}", "it is in the folder, and not in the list"))
        elif digest is None:
            verdict.faults.append(Fault(paper, f"file {path}", "it is in the list, and not in the folder"))
        elif digest != listed[path]:
            verdict.faults.append(
                Fault(paper, f"file {path}", f"it has the SHA-256 {digest} instead of {listed[path]}")
            )


def _manifest(verdict: FolderVerdict) -> None:
    """release.json against the files."""
    path = verdict.folder / MANIFEST
    if not path.is_file():
        verdict.notes.append(f"there is no {MANIFEST}")
        return
    try:
        listed = parsed_json(path.read_bytes())["files"]
        if not isinstance(listed, dict):
            raise TypeError("files is no table")
    except (ValueError, KeyError, TypeError) as error:
        verdict.faults.append(Fault(MANIFEST, "list of files", f"it cannot be read ({error})"))
        return
    _compare(verdict, cast("dict[str, str]", listed), MANIFEST)


# --- the statement ----------------------------------------------------------------------------------------------------


def _statement(verdict: FolderVerdict, public_key: Path | None) -> None:
    path, envelope = verdict.folder / statement.FILE, verdict.folder / statement.ENVELOPE
    if envelope.is_file():
        try:
            if not path.is_file() or statement.opened(envelope, public_key) != path.read_bytes():
                verdict.faults.append(Fault(statement.ENVELOPE, "payload", f"it is not what {statement.FILE} says"))
        except InputError as error:
            verdict.faults.append(Fault(statement.ENVELOPE, "signature", str(error)))
    if not path.is_file():
        verdict.notes.append(f"there is no {statement.FILE}: nothing is known of where the model comes from")
        return
    try:
        value = statement.load(path)
        predicate = value["predicate"]["buildDefinition"]
        results = {row["key"]: row for row in predicate["internalParameters"]["results"]}
        verdict.results = len(results)
        subjects = {row["name"]: row["digest"]["sha256"] for row in value["subject"]}
        _compare(verdict, subjects, statement.FILE)
        verdict.faults += [fault for row in results.values() for fault in _result(row, results)]
        verdict.faults += _sources(predicate.get("resolvedDependencies", []), results)
        root = list(results.values())[-1]
        verdict.faults += [*_model(verdict, root), *_same_model(verdict.folder / MANIFEST, root)]
    except InputError as error:
        verdict.faults.append(Fault(statement.FILE, "statement", str(error)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        verdict.faults.append(Fault(statement.FILE, "chain", f"it is not told as Moxin tells it ({error!r})"))


def _result(row: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[Fault]:
    """One result of the chain: its key, its artifacts, and that its inputs are outputs of its parents."""
    node = row["node"]
    inputs = {port: [ref["digest"] for ref in refs] for port, refs in row["inputs"].items()}
    if (key := stage_key(row["stage"], row["revision"], row["identity"], inputs)) != row["key"]:
        yield Fault(node, f"key {row['key']}", f"stage, revision, configuration and inputs give the key {key}")
    for port, artifact in row["outputs"].items():
        files = [FileEntry(path=p, size=size, sha256=digest, object="-") for p, size, digest in artifact["files"]]
        index = index_digest(files) if "index" in artifact else None
        if (digest := artifact_digest(artifact["type"], artifact["facets"], files, index)) != artifact["digest"]:
            yield Fault(node, f"output {port}", f"its files give the digest {digest}, not {artifact['digest']}")
    for port, refs in row["inputs"].items():
        for ref in refs:
            parent = results.get(ref["key"], {"outputs": {}})
            output = parent["outputs"].get(ref["port"], {"digest": "nothing"})
            if output["digest"] != ref["digest"]:
                what = f"it read {ref['digest']}, and {ref['node']} has {output['digest']}"
                yield Fault(node, f"input {port} from {ref['node']}.{ref['port']}", what)


def _sources(dependencies: list[Mapping[str, Any]], results: Mapping[str, Any]) -> Iterator[Fault]:
    """The files that the chain begins with, against what the statement lists as such."""
    listed = {row.get("name"): row.get("digest", {}).get("sha256") for row in dependencies}
    used = {(ref["key"], ref["port"]) for row in results.values() for refs in row["inputs"].values() for ref in refs}
    for row in results.values():
        for port, artifact in row["outputs"].items() if not any(row["inputs"].values()) else ():
            for path, _, digest in artifact["files"] if (row["key"], port) in used else ():
                name = f"{row['node']}.{port}/{path}"
                if listed.get(name) != digest:
                    yield Fault(row["node"], f"source {name}", f"{listed.get(name)} is listed, {digest} was read")


def _model(verdict: FolderVerdict, row: Mapping[str, Any]) -> Iterator[Fault]:
    """The files of the model's own artifact against those of the folder."""
    weights = 0
    for port, artifact in row["outputs"].items():
        if artifact["type"] != "Model":
            continue
        for path, _, digest in artifact["files"]:
            released = verdict.digests.get(path)
            weights += path.endswith(".safetensors") and released == digest
            if released not in (None, digest) and path not in REWRITTEN and not path.endswith(".safetensors"):
                yield Fault(row["node"], f"output {port}, file {path}", f"the folder's has {released}, not {digest}")
        files = [path for path, _, _ in artifact["files"] if path.endswith(".safetensors")]
        if files and weights < len(files):
            verdict.notes.append(
                f"the weights are split anew ({len(files)} files in the run): their bytes are not the run's own"
            )


def _same_model(manifest: Path, row: Mapping[str, Any]) -> Iterator[Fault]:
    """release.json and the statement speak of one model."""
    if not manifest.is_file():
        return
    try:
        value = parsed_json(manifest.read_bytes())
    except ValueError:  # told by `_manifest`
        return
    models = [artifact["digest"] for artifact in row["outputs"].values() if artifact["type"] == "Model"]
    if value.get("key") != row["key"] or value.get("digest") not in models:
        yield Fault(MANIFEST, "model", f"it speaks of {value.get('digest')}, {statement.FILE} of {', '.join(models)}")


def _signature(verdict: FolderVerdict, public_key: Path | None) -> None:
    there = (verdict.folder / signing.SIGNATURE).is_file()
    if public_key is None:
        verdict.notes.append(
            f"{signing.SIGNATURE} was not checked: give --public-key" if there else "the folder is not signed"
        )
        return
    try:
        lines = signing.verify(verdict.folder, public_key)
    except InputError as error:
        verdict.faults.append(Fault(signing.SIGNATURE, "signature", str(error)))
        return
    for line in lines:
        path, _, what = line.partition(": ")
        verdict.faults.append(Fault(signing.SIGNATURE, f"file {path}", what))
