"""Files as this project writes or takes them, each with its reader and the errors that the reader says it raises."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from hypothesis import strategies as st
from PIL import Image

from flows import profiles
from stages.core.artifacts import FileEntry, TokenShards
from stages.core.errors import ExitClass, StageError
from stages.core.index import Page
from stages.core.keys import sha256
from stages.core.messages import StageResult
from stages.core.records import AttemptOutcome, AttemptRecord, CheckpointCommit, LeaseRecord, RecordStore, TagRecord
from stages.core.records import sealed as sealed_record
from stages.core.task_objects import FolderObjects
from stages.core.testing import local_artifact
from stages.lib.data import task
from stages.lib.formats import compression, documents, json_rows, suites, tensor_file, vocabulary
from stages.lib.formats.shards import Shards, ShardWriter
from stages.lib.vision.image_decoding import ImageProblem, decode
from tests.support import probe_pipeline
from tests.support.memory_store import World

KEY = "ab" * 32
ENTRY = FileEntry(path="0", size=4, sha256=sha256(b"text"), object=f"objects/s/{KEY}/000001/o/0", blocks="0a1b2c3d")
LINES = b"".join(json.dumps({"text": f"line {n} " * 20}).encode() + b"\n" for n in range(40))


@dataclass(frozen=True)
class Reader:
    """valid: what it takes. read: gets a file of that name, and reads all of it. raises: its declared errors."""

    name: str
    valid: Callable[[Path], bytes]
    read: Callable[[Path], object]
    raises: tuple[type[BaseException], ...] = (StageError,)


def _record(kind: Any, record: Any) -> Reader:
    store = RecordStore(World().store())
    body = sealed_record(record) if hasattr(record, "_without_seal") else record.model_dump_json().encode()
    return Reader(f"{kind.__name__}.json", lambda _: body, lambda path: store._parse(kind, "x", path.read_bytes()))


JOB = task.Job("stages.lib.data.task", "execute", '{"folder": "x"}', "step", 1, {"a": 1}, "")


def _receipt(_: Path) -> bytes:
    row = {"task": task.fingerprint(JOB), "value": {"n": 1}, "files": [ENTRY.value()], "name": "step.files/1.a"}
    return json.dumps(row).encode()


def _safetensors(_: Path) -> bytes:
    header = json.dumps(
        {"__metadata__": {"a": "b"}, "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    ).encode()
    return len(header).to_bytes(8, "little") + header + bytes(24)


def _parquet(folder: Path) -> bytes:
    (folder / "d").mkdir()
    rows = [{"id": str(n), "text": f"text {n}", "source": "s"} for n in range(50)]
    documents.write_documents(folder / "d", rows)
    return next((folder / "d").glob("*.parquet")).read_bytes()


def _shards(folder: Path) -> Path:
    (folder / "shards").mkdir(exist_ok=True)
    with ShardWriter(folder / "shards", 16, 300, 2, "d") as writer:
        writer.add(np.arange(8 * 16, dtype=np.uint16).reshape(8, 16))
    return folder / "shards"


def _image(kind: str) -> Callable[[Path], bytes]:
    def made(_: Path) -> bytes:
        stream = io.BytesIO()
        Image.radial_gradient("L").resize((24, 24)).convert("RGB").save(stream, kind)
        return stream.getvalue()

    return made


def _tokenizer(folder: Path) -> bytes:
    from tokenizers import Tokenizer, models

    (folder / "t").mkdir()
    Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, "<unk>")).save(str(folder / "t" / "tokenizer.json"))
    return (folder / "t" / "tokenizer.json").read_bytes()


def _suite(_: Path) -> bytes:
    return suites.Suite(data_sets=()).model_dump_json(indent=1).encode()


PIPELINE = probe_pipeline.small_pipeline()
PACKED = (compression.Damaged, UnicodeDecodeError, StageError, OSError)
READERS = (
    _record(LeaseRecord, LeaseRecord(key=KEY, epoch=3, holder="h", expires_at=1.5, host="h", process="1:2")),
    _record(StageResult, probe_pipeline.result_with([ENTRY])),
    _record(CheckpointCommit, CheckpointCommit(step=3, epoch=1, files=(ENTRY,))),
    _record(TagRecord, TagRecord(name="n", key=KEY, node="n", created_by="b", created_at="t")),
    _record(
        AttemptRecord, AttemptRecord(key=KEY, epoch=1, node="n", run_id="r", launcher="l", started_at="t", job="j")
    ),
    _record(AttemptOutcome, AttemptOutcome(key=KEY, epoch=1, ended_at="t", exit_class=ExitClass.OK)),
    Reader("page.json", lambda _: Page(files=(ENTRY,)).model_dump_json().encode(),
           lambda path: Page.model_validate_json(path.read_bytes()), (ValueError,)),
    Reader("receipt.json", _receipt, lambda path: task._read(path.read_bytes(), JOB, FolderObjects(path.parent))),
    Reader("rows.jsonl.gz", lambda _: gzip.compress(LINES, mtime=0), lambda p: list(compression.lines_of(p)), PACKED),
    Reader("rows.jsonl.zst", lambda _: zstandard.compress(LINES), lambda p: list(compression.lines_of(p)), PACKED),
    Reader("rows.jsonl.xz", lambda _: lzma.compress(LINES), lambda p: list(compression.lines_of(p)), PACKED),
    Reader("rows.jsonl.bz2", lambda _: bz2.compress(LINES), lambda p: list(compression.lines_of(p)), PACKED),
    Reader("rows.jsonl", lambda _: LINES[:400],
           lambda p: [json_rows.line_value(line) for line in p.read_bytes().splitlines()], ()),
    Reader("part.parquet", _parquet, lambda path: list(documents.read_documents(path.parent))),
    Reader("model.safetensors", _safetensors,
           lambda p: tensor_file.read_header(io.BytesIO(p.read_bytes()), p.stat().st_size), (ValueError,)),
    Reader("tokenizer.json", _tokenizer, vocabulary.read),
    Reader("index.json", lambda folder: (_shards(folder) / "index.json").read_bytes(), lambda path: _windows(path)),
    Reader("picture.png", _image("PNG"), lambda path: decode(path.read_bytes()), (ImageProblem,)),
    Reader("picture.jpg", _image("JPEG"), lambda path: decode(path.read_bytes()), (ImageProblem,)),
    Reader("picture.webp", _image("WEBP"), lambda path: decode(path.read_bytes()), (ImageProblem,)),
    Reader("test.toml", lambda _: probe_pipeline.PROFILE.encode(),
           lambda path: profiles.load("test", PIPELINE, (), path.parent)),
)  # fmt: skip


def _windows(path: Path) -> object:
    folder = _shards(path.parent)
    (folder / "index.json").write_bytes(path.read_bytes())
    shards = Shards.open(local_artifact(TokenShards, folder).entries())
    return shards.windows(range(min(len(shards), 4)))


@st.composite
def damage(draw: st.DrawFn, valid: bytes) -> bytes:
    """The same with up to four pieces flipped, cut, doubled, put in or taken out."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at, size = draw(st.integers(0, max(0, len(data) - 1))), draw(st.sampled_from((1, 1, 2, 8, 100)))
        how = draw(st.sampled_from(("flip", "digit", "cut", "out", "double", "put")))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "digit":  # numbers of other sizes and signs, which stay what they are in JSON
            data[at : at + 1] = draw(st.sampled_from((b"0", b"-1", b"9" * 25, b"1e999", b"null", b"[]", b"{}", b'""')))
        elif how == "cut":
            del data[at:]
        elif how == "out":
            del data[at : at + size]
        elif how == "double":
            data[at:at] = data[at : at + size] * draw(st.sampled_from((1, 3, 50)))
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=size))
    return bytes(data)
