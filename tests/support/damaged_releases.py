"""Models, exports and releases that others hand over, for the tests of damaged bytes."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.release import folder_checks, statement
from stages.core.keys import artifact_digest, sha256, stage_key
from stages.lib.outside import models, program
from stages.lib.outside.prepared import PROVENANCE
from stages.lib.vision.conversations import ImageReader
from tests.support import outside_model
from tests.support.damaged_bytes import Reader

INDEXED = {
    "metadata": {},
    "weight_map": {name: models.ONE_FILE for name, _ in models.expected(outside_model.SHAPE, 260)},
}
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages }}", "bos_token": "<s>"}
WEIGHTS = b"weights"
FILE = ["w.safetensors", len(WEIGHTS), sha256(WEIGHTS)]


def _of_model(name: str, valid: Callable[[Path], bytes]) -> Reader:
    """One file of a model's folder."""

    def read(path: Path) -> object:
        folder, target = outside_model.write(path.parent / "model"), path.parent / "written"
        target.mkdir()
        (folder / name).write_bytes(path.read_bytes())
        return models.prepare_model(folder, target)

    return Reader(name, valid, read)


def _json(value: Any) -> Callable[[Path], bytes]:
    return lambda _: json.dumps(value).encode()


def _config(folder: Path) -> bytes:
    return (outside_model.write(folder / "valid") / models.CONFIG).read_bytes()


def _exported(path: Path) -> object:
    folder = path.parent / "exported"
    folder.mkdir()
    (folder / FILE[0]).write_bytes(WEIGHTS)
    (folder / PROVENANCE).write_bytes(path.read_bytes())
    return program.prepare(folder, "Model", "model", path.parent).value()


def _statement(_: Path) -> bytes:
    digest = artifact_digest("Model", {}, [], None)
    model = {"type": "Model", "facets": {}, "files": [], "digest": digest}
    row = {"node": "n", "stage": "s", "revision": 1, "identity": {"a": 1}, "inputs": {}, "outputs": {"model": model}}
    build = {
        "buildType": statement.BUILD, "externalParameters": {"name": "n"}, "resolvedDependencies": [],
        "internalParameters": {"results": [row | {"key": stage_key("s", 1, {"a": 1}, {})}]},
    }  # fmt: skip
    value = {
        "_type": "https://in-toto.io/Statement/v1", "predicateType": statement.PREDICATE,
        "subject": [{"name": FILE[0], "digest": {"sha256": FILE[2]}}],
        "predicate": {"buildDefinition": build, "runDetails": {"builder": {"id": "b"}}},
    }  # fmt: skip
    return json.dumps(value).encode()


def _envelope(folder: Path) -> bytes:
    body = base64.b64encode(_statement(folder)).decode()
    return json.dumps({"payload": body, "payloadType": statement.PAYLOAD, "signatures": [{"sig": "AAAA"}]}).encode()


def _verified(path: Path) -> object:
    """A release with this paper: whatever it says, there is a verdict."""
    (path.parent / FILE[0]).write_bytes(WEIGHTS)
    if path.name == statement.ENVELOPE:
        (path.parent / statement.FILE).write_bytes(_statement(path.parent))
    return folder_checks.verify(path.parent).row()


def _zip(_: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, how in (("a.png", zipfile.ZIP_STORED), ("b.png", zipfile.ZIP_DEFLATED), ("c.png", zipfile.ZIP_LZMA)):
            archive.writestr(zipfile.ZipInfo(name), bytes(range(256)) * 4, compress_type=how)
    return stream.getvalue()


def _images(path: Path) -> object:
    images = ImageReader([path], 1 << 20)
    read = {}
    for name in images:
        try:
            read[name] = images[name]
        except KeyError:  # declared: this image is damaged, the others are not
            read[name] = b""
    return read


PAPERS = {"key": "k", "digest": "d", "files": {FILE[0]: FILE[2]}}
RELEASES = (
    _of_model(models.CONFIG, _config),
    _of_model(models.INDEX, _json(INDEXED)),
    _of_model("tokenizer_config.json", _json(SETTINGS)),
    _of_model("chat_template.jinja", lambda _: "{{ messages }} é".encode()),
    Reader(
        PROVENANCE, _json({"type": "Model", "files": {FILE[0]: FILE[2]}, "facets": {"a": 1}, "meta": {}}), _exported
    ),
    Reader(folder_checks.MANIFEST, _json(PAPERS), _verified),
    Reader(statement.FILE, _statement, _verified),
    Reader(statement.ENVELOPE, _envelope, _verified),
    Reader("images.zip", _zip, _images),
)
