"""Where a model comes from, as an in-toto statement with SLSA provenance: from the raw sources by digest to its files.

    statement.write(folder, chain, "Moxin-7B-LLM")      provenance.intoto.json in the folder
    statement.sign(folder, key)                         provenance.intoto.jsonl: the same in a signed envelope (DSSE)

Subjects are the folder's files; resolved dependencies are what no node of the DAG has made: raw files, data sets of the
hub, commits, locks, images. `internalParameters.results` is the whole chain between the two, with all that keys and
artifact digests are made of: whoever has the statement can compute each of them again without a store.

Forms: in-toto Statement v1 and SLSA Provenance v1, both checked by the `in-toto-attestation` library; DSSE v1.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from flows.release.chain import Chain, Link
from flows.release.lineage import table_of
from stages.core.errors import InputError
from stages.core.files import file_sha256, write_atomically
from stages.core.json_text import parsed_json
from stages.core.messages import CodeRef

FILE = "provenance.intoto.json"
ENVELOPE = "provenance.intoto.jsonl"
PREDICATE = "https://slsa.dev/provenance/v1"
PAYLOAD = "application/vnd.in-toto+json"
BUILD = "urn:moxin:pipeline:1"
"""What `externalParameters` and `internalParameters` mean: this module, first version."""
LISTS = ("text", "web", "code", "sources")
"""Settings that list raw files by address."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_REVISION = re.compile(r"^hf://[^@?]+@([0-9a-f]{40})")


def make(chain: Chain, name: str, files: Mapping[str, str]) -> dict[str, Any]:
    """The statement of a model, checked by the library. files: SHA-256 by path, of what the statement is about.

    Raises ValueError where the library refuses it.
    """
    attempts = [link.result.attempt for link in chain.links]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path, "digest": {"sha256": digest}} for path, digest in sorted(files.items())],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": {"name": name, "profile": chain.profile, "node": chain.node},
                "internalParameters": {"results": [link.row() for link in chain.links]},
                "resolvedDependencies": _unique([*_raw_files(chain), *outside(chain.links), *_environment(chain)]),
            },
            "runDetails": {
                "builder": {"id": "urn:moxin:runtime", "version": {"moxin": metadata.version("moxin")}},
                "metadata": {
                    "invocationId": chain.root.result.attempt.run_id,
                    "startedOn": min(attempt.started_at for attempt in attempts),
                    "finishedOn": max(attempt.ended_at for attempt in attempts),
                },
            },
        },
    }
    validate(statement)
    return statement


def validate(statement: Mapping[str, Any]) -> None:
    """Raises ValueError unless a value is a statement with provenance, as the library of in-toto sees it."""
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    try:
        message: Any = json_format.ParseDict(dict(statement), statement_pb2.Statement())  # type: ignore[attr-defined]
        Statement.copy_from_pb(message).validate()
        if statement["predicateType"] != PREDICATE:
            raise ValueError(f"its predicate is {statement['predicateType']}, not {PREDICATE}")
        provenance: Any = json_format.ParseDict(statement["predicate"], provenance_pb2.Provenance())  # type: ignore[attr-defined]
        for dependency in provenance.build_definition.resolved_dependencies:
            ResourceDescriptor.copy_from_pb(dependency).validate()
    except (json_format.ParseError, TypeError, KeyError) as error:
        raise ValueError(str(error)) from error


def write(folder: Path, chain: Chain, name: str, files: Mapping[str, str] | None = None) -> Path:
    """Write the statement about a folder's files (files: their SHA-256, where they are known already)."""
    if files is None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (FILE, ENVELOPE))
        files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}
    write_atomically(folder / FILE, json.dumps(make(chain, name, files), indent=1, ensure_ascii=False) + "\n")
    return folder / FILE


def load(path: Path) -> dict[str, Any]:
    """A statement from its file. Raises InputError."""
    try:
        statement = parsed_json(path.read_bytes())
        validate(statement)
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} is no in-toto statement with SLSA provenance: {error}") from error
    return statement


# --- what the chain begins with ---------------------------------------------------------------------------------------


def _raw_files(chain: Chain) -> Iterator[dict[str, Any]]:
    """The files of the nodes that read no other node."""
    for link, port, manifest in chain.artifacts():
        if link.refs:
            continue
        for file in manifest.files:
            yield {"name": f"{link.node}.{port}/{file.path}", "digest": {"sha256": file.sha256}}


def outside(links: Iterable[Link]) -> Iterator[dict[str, Any]]:
    """What results read from outside, as resource descriptors: data sets of the hub by commit, raw files by address."""
    for link in links:
        for source in _rows(link.result.stats.get("sources")):
            if name := source.get("data_set"):
                yield _descriptor(f"{link.node}: {name}", f"hf://{name}", source.get("revision"), source.get("license"))
        for port in LISTS:
            for source in _rows(link.result.config.get(port)):
                if "://" in (uri := str(source.get("uri", ""))) and not uri.startswith("file:"):
                    revision = _HUB_REVISION.match(uri)
                    digest = {"sha256": source["sha256"]} if source.get("sha256") else {}
                    yield _descriptor(
                        f"{link.node}: {uri}", uri, revision and revision[1], source.get("license"), digest
                    )
        for name, given in table_of(link.result.config.get("data_sets")).items():
            if (source := table_of(given)).get("origin") == "hub":
                yield _descriptor(f"{link.node}: {name}", f"hf://{name}", source.get("revision"), None)


def _rows(value: Any) -> list[Mapping[str, Any]]:
    rows = cast("Sequence[Any]", value) if isinstance(value, list | tuple) else ()
    return [table_of(row) for row in rows if isinstance(row, Mapping)]


def _descriptor(
    name: str, uri: str, revision: str | None, license: str | None, digest: Mapping[str, str] | None = None
) -> dict[str, Any]:
    commit = {"gitCommit": revision} if revision and _COMMIT.fullmatch(revision) else {}
    pinned = dict(digest or {}) | commit
    annotations = {"license": license} if license else {}
    if revision and not commit:
        annotations["revision"] = revision
    return {
        "name": name,
        "uri": uri,
        **({"digest": pinned} if pinned else {}),
        **({"annotations": annotations} if annotations else {}),
    }


def _environment(chain: Chain) -> Iterator[dict[str, Any]]:
    """The code that ran: commits, sources of stages, locks, images."""
    for link in chain.links:
        code: CodeRef = link.result.code
        if code.git_commit and _COMMIT.fullmatch(code.git_commit):
            yield {"name": "moxin", "digest": {"gitCommit": code.git_commit}}
        yield from _digests(link, code)


def _digests(link: Link, code: CodeRef) -> Iterator[dict[str, Any]]:
    hexadecimal = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
    for what, digest in (
        (f"sources of stage {link.result.stage}", code.source_digest),
        ("lock of the environment", code.lock_digest),
        ("lock of the engine", code.engine_lock_digest),
        (f"image {code.image}", code.image_digest and code.image_digest.rpartition("@")[2]),
    ):
        if digest and (parts := hexadecimal.fullmatch(digest)):
            yield {"name": what, "digest": {"sha256": parts[1]}}


def _unique(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(row, sort_keys=True): row for row in rows}.values())


# --- the signed envelope ----------------------------------------------------------------------------------------------


def pae(body: bytes) -> bytes:
    """What a DSSE signature is made over (DSSE v1, "pre-authentication encoding")."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(body), body)


def sign(folder: Path, key: Path) -> Path:
    """Write the statement of a folder again, in an envelope signed with a private key (EC, PEM). Raises ConfigError."""
    from cryptography.hazmat.primitives.asymmetric import ec

    from flows.release import signing

    private = signing.private_key(key)
    body = (folder / FILE).read_bytes()
    signature = private.sign(pae(body), ec.ECDSA(signing.hash_of(private.public_key())))
    envelope = {
        "payload": base64.b64encode(body).decode(),
        "payloadType": PAYLOAD,
        "signatures": [{"keyid": signing.key_id(private.public_key()), "sig": base64.b64encode(signature).decode()}],
    }
    write_atomically(folder / ENVELOPE, json.dumps(envelope) + "\n")
    return folder / ENVELOPE


def opened(path: Path, public_key: Path | None) -> bytes:
    """The statement in an envelope. public_key: checks the signature too. Raises InputError, ConfigError."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    from flows.release import signing

    try:
        envelope = parsed_json(path.read_bytes())
        body, kind = base64.b64decode(envelope["payload"], validate=True), envelope["payloadType"]
        signatures = [base64.b64decode(row["sig"], validate=True) for row in envelope["signatures"]]
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
        raise InputError(f"{path.name} is no DSSE envelope: {error}") from error
    if kind != PAYLOAD or not signatures:
        raise InputError(f"{path.name} holds {kind!r} with {len(signatures)} signatures, not a signed {PAYLOAD}")
    if public_key is not None:
        public = signing.public_key(public_key)
        for signature in signatures:
            try:
                public.verify(signature, pae(body), ec.ECDSA(signing.hash_of(public)))
            except InvalidSignature:
                raise InputError(f"{path.name}: its signature is not of this key, or not of this statement") from None
    return body


__all__ = ["ENVELOPE", "FILE", "load", "make", "opened", "outside", "sign", "validate", "write"]
