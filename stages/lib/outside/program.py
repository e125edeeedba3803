"""Bring and check what is to be adopted: `moxin adopt` starts this program, since the control plane reads no formats.

A request as JSON on standard input: {"place": .., "work": .., "ports": {port: artifact type}}. One line of JSON comes
back: {"place", "revision", "ports": {port: a `Prepared` as JSON}}, or {"exit": class, "error": line}.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import ConfigError, InputError, StageError
from stages.core.files import file_sha256, inside
from stages.core.json_text import parsed_json
from stages.lib.outside import models, places, tables
from stages.lib.outside.prepared import PROVENANCE, Prepared


def adopted(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request. Raises StageError."""
    place, ports, work = str(request["place"]), dict(request["ports"]), Path(request["work"])
    whole = set(ports.values()) <= {"Model"}

    def choose(names: Iterable[str]) -> list[str]:
        listed = list(names)
        return models.needed(listed) if whole and PROVENANCE not in listed else listed

    there = places.fetched(place, work / "fetched", choose)
    shutil.rmtree(work / "written", ignore_errors=True)
    prepared: dict[str, Any] = {}
    for port, kind in ports.items():
        folder = there.folder if len(ports) == 1 else there.folder / port
        if not folder.is_dir():
            raise InputError(f"{place}: there is no folder {port} in it: it needs one for each of {', '.join(ports)}")
        target = work / "written" / port
        target.mkdir(parents=True)
        try:
            prepared[port] = prepare(folder, kind, port, target).value()
        except StageError as error:
            raise type(error)(f"{place}{f', {port}' if len(ports) > 1 else ''}: {error}") from error
    return {"place": there.name, "revision": there.revision, "ports": prepared}


def prepare(folder: Path, kind: str, port: str, target: Path) -> Prepared:
    """One output, checked. Raises InputError with what is wrong."""
    if (folder / PROVENANCE).is_file():
        return _exported(folder, kind)
    if kind == "Model":
        return models.prepare_model(folder, target)
    if kind == "Tokenizer":
        return models.prepare_tokenizer(folder, target)
    if kind in tables.TABLES:
        return tables.prepare_rows(folder, kind)
    raise ConfigError(
        f"{port} is of type {kind}, which is adopted from a folder that 'moxin export' wrote, with its {PROVENANCE}"
    )


def _exported(folder: Path, kind: str) -> Prepared:
    """What `moxin export` wrote, every byte as it was then."""
    try:
        stated: dict[str, Any] = parsed_json((folder / PROVENANCE).read_text(encoding="utf-8"))
        files, facets, of_type, meta = stated["files"], stated["facets"], stated["type"], stated.get("meta", {})
        if not all(isinstance(part, dict) for part in (files, facets, meta)):
            raise ValueError("files, facets and meta are no tables")
        if odd := [name for name, value in facets.items() if not isinstance(value, str | int)]:
            raise ValueError(f"the facet {odd[0]!r} is neither text nor a whole number")
        json.dumps(stated, ensure_ascii=False).encode()  # half of a surrogate pair is no text that a file can hold
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{PROVENANCE} cannot be read: {error}") from error
    if of_type != kind:
        raise InputError(f"it holds {str(of_type)[:200]}, not {kind}: {PROVENANCE} says so")
    for name, digest in files.items():
        path = inside(folder, name)
        if not path.is_file():
            raise InputError(f"there is no {name}, which {PROVENANCE} names")
        if file_sha256(path) != digest:
            raise InputError(f"{name} is not what was exported: its SHA-256 is another one")
    return Prepared({name: folder / name for name in files}, facets, meta, sha256=files)


def main() -> None:
    """Answer the request on standard input."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print must not disturb the answer
    try:
        answer = adopted(json.load(sys.stdin))
    except StageError as error:
        answer = {"exit": error.exit_class.value, "error": " ".join(str(error).split())}
    out.write(json.dumps(answer) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
