"""Croissant metadata: the library takes it, and reads the very rows through it from the Parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.release import croissant
from stages.core import artifacts
from stages.core.artifacts import ArtifactManifest
from stages.core.errors import ConfigError, InputError
from stages.core.messages import StageResult
from stages.core.testing import local_artifact
from stages.lib.formats import documents, examples
from tests.support.model_chain import artifact, result

TURNS = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4 – four"}]
ROWS: dict[str, tuple[pa.Schema, dict[str, Any]]] = {
    "Documents": (documents.SCHEMA, {"text": "a text\nof two lines", "url": "https://example.org/1"}),
    "Conversations": (examples.CONVERSATIONS, {"messages": TURNS}),
    "Preferences": (examples.PREFERENCES, {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[1:]}),
    "Problems": (examples.PROBLEMS, {"problem": "2 + 2?", "answer": "4", "solution": ""}),
}


def data(folder: Path, type: str, port: str, names: tuple[str, ...]) -> ArtifactManifest:
    """An output on this disk: two Parquet parts, with the real schema."""
    schema, values = ROWS[type]
    (folder / port).mkdir(parents=True)
    for number, name in enumerate(names):
        row = {"id": name, "source": "toy", "license": "MIT"} | values
        pq.write_table(pa.Table.from_pylist([row], schema=schema), folder / port / f"part-{number:05d}.parquet")
    return local_artifact(getattr(artifacts, type), folder / port).manifest


def made(folder: Path, type: str) -> StageResult:
    outputs = {"train": data(folder, type, "train", ("a", "b")), "heldout": data(folder, type, "heldout", ("c",))}
    return result("node", "stage", outputs)


def plain(value: Any) -> Any:
    """A record as the library gives it, without the names of its record set."""
    if isinstance(value, dict):
        return {key.rsplit("/", 1)[-1]: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("type", sorted(ROWS))
def test_the_rows_come_back(type: str, tmp_path: Path) -> None:
    source = made(tmp_path, type)
    path = croissant.write(tmp_path, source, ["MIT", "Apache-2.0"])
    read = croissant.load(path)
    assert not read.metadata.issues.errors
    assert not read.metadata.issues.warnings
    for port, names in (("train", ["a", "b"]), ("heldout", ["c"])):
        rows = [plain(row) for row in read.records(port)]
        assert sorted(row["id"] for row in rows) == names
        for row in rows:
            assert row == {"id": row["id"], "source": "toy", "license": "MIT"} | ROWS[type][1]


def test_the_columns_are_those_of_the_formats() -> None:
    for type, (schema, _) in ROWS.items():
        assert list(croissant.COLUMNS[type]) == schema.names
        for name, (kind, _) in croissant.COLUMNS[type].items():
            assert (kind == croissant.MESSAGES) == pa.types.is_list(schema.field(name).type)


def test_every_file_has_its_digest(tmp_path: Path) -> None:
    source = made(tmp_path, "Problems")
    value = json.loads(croissant.write(tmp_path, source, []).read_text())
    assert value["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    files = {row["@id"]: row["sha256"] for row in value["distribution"] if row["@type"] == "cr:FileObject"}
    assert files == {f"{port}/{file.path}": file.sha256 for port, m in source.outputs.items() for file in m.files}
    assert source.key in value["description"]
    assert str(tmp_path) not in json.dumps(value)


def test_what_is_not_described(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="node shards makes none of Documents"):
        croissant.write(tmp_path, result("shards", "tokenize", {"shards": artifact("TokenShards", a__bin="x")}), [])
    (tmp_path / "broken.json").write_text('{"@type": "sc:Dataset"}')
    with pytest.raises(InputError, match=r"broken\.json is no Croissant metadata"):
        croissant.load(tmp_path / "broken.json")
