"""A corpus cut into shards: the same cut from footers and from entries, and no byte read that nobody asked for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.artifacts import Documents
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats import corpus
from stages.lib.formats.corpus import Shard, commonest, count_values, read_shard, shards_of
from stages.lib.formats.documents import SCHEMA, read_documents
from stages.lib.formats.parquet_parts import OTHERS, PartWriter


def write(folder: Path, rows: int) -> Path:
    """Parts of several small row groups."""
    folder.mkdir()
    with PartWriter(folder, SCHEMA, row_group_bytes=4000, part_bytes=12_000) as writer:
        for n in range(rows):
            writer.append((f"{folder.name}{n}", f"text {n} " * 20, "s", "u" * 50, "CC0"), 200)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / "a", 70), write(tmp_path / "b", 0), write(tmp_path / "c", 31)]


def cut(folders: list[Path], size: int) -> list[tuple[int, int, int, int, list[str]]]:
    """(first group, end group, start, rows, ids) of each shard, from the footers of the folders' files."""
    rows: list[tuple[int, int, int, int, list[str]]] = []
    start = 0
    for path in (path for folder in folders for path in sorted(folder.glob("part-*.parquet"))):
        groups = pq.read_metadata(path)
        first = count = held = 0
        for number in range(groups.num_row_groups):
            group = groups.row_group(number)
            count, held = count + group.num_rows, held + group.total_byte_size + corpus.DOCUMENT_BYTES * group.num_rows
            if count and (held >= size or number == groups.num_row_groups - 1):
                table = pq.ParquetFile(path).read_row_groups(list(range(first, number + 1)), columns=["id"])
                rows.append((first, number + 1, start, count, table.column("id").to_pylist()))
                start, first, count, held = start + count, number + 1, 0, 0
    return rows


def ids(shard: Shard) -> list[str]:
    return [id for batch in read_shard(shard, columns=["id"]) for id in batch.column("id").to_pylist()]


@pytest.mark.parametrize("size", [1, 9000, 1 << 20])
def test_entries_are_cut_as_footers_say(folders: list[Path], size: int) -> None:
    entries = [local_artifact(Documents, folder).entries() for folder in folders]
    stored = shards_of(entries, size)
    assert [(s.first_group, s.end_group, s.start, s.rows, ids(s)) for s in stored] == cut(folders, size)
    assert [id for shard in stored for id in ids(shard)] == [f"a{n}" for n in range(70)] + [f"c{n}" for n in range(31)]


def test_an_entry_that_says_its_groups_is_not_opened(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    entries = local_artifact(Documents, folders[0]).entries()
    told = [e.model_copy(update={"detail": json.dumps({"groups": corpus.groups_of(e)})}) for e in entries]
    wanted = shards_of([entries], 9000)

    def refuse(entry: Any) -> Any:
        raise AssertionError("opened")

    monkeypatch.setattr(corpus, "open_file", refuse)
    assert shards_of([told], 9000) == wanted


def test_parts_of_tasks_become_an_output_and_nothing_becomes_one_empty_part(
    tmp_path: Path, folders: list[Path]
) -> None:
    for name, inputs in (("some", [folders[0], folders[2]]), ("none", [])):
        ctx: LocalContext[Any] = LocalContext(tmp_path / name, None)
        entries = [e for folder in inputs for e in local_artifact(Documents, folder).entries()]
        corpus.link_parts(ctx, "documents", entries)
        found = [d["id"] for d in read_documents(ctx.output("documents"))]
        assert found == [d["id"] for folder in inputs for d in read_documents(folder)]
        assert (ctx.output("documents") / "part-00000.parquet").is_file()


def test_counts_of_tasks_add_up_and_the_rarest_are_others() -> None:
    one: Counter[str] = Counter()
    for values in (["a", "b", "a"], ["c"], []):
        count_values(one, pa.array(values, pa.string()))
    assert one == {"a": 2, "b": 1, "c": 1}
    assert commonest([one, {"b": 3}]) == {"a": 2, "b": 4, "c": 1}
    assert commonest([one, {"b": 3}], most=1) == {"b": 4, OTHERS: 3}
    assert commonest([]) == {}
