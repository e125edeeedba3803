"""Training data of every kind as texts: what a model reads together is one text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.core.artifacts import FileEntry
from stages.core.errors import InputError
from stages.core.store_errors import Damaged
from stages.lib.formats.corpus import Shard, read_shard, shards_of
from stages.lib.vision import conversations as visual

PARQUET_ROWS = 4096
LINES = 1024
"""Rows of a text file that are looked at together."""

Row = Mapping[str, Any]


def conversation_text(row: Row) -> str:
    """All turns, in order."""
    return "\n".join(m["content"] for m in row["messages"])


def preference_text(row: Row) -> str:
    """The prompt and both answers."""
    return "\n".join(m["content"] for part in ("prompt", "chosen", "rejected") for m in row[part])


def problem_text(row: Row) -> str:
    """The problem, its solution, its answer."""
    return "\n".join((row["problem"], row["solution"], row["answer"]))


TEXTS: Mapping[str, tuple[list[str], Callable[[Row], str] | None]] = {
    "documents": (["id", "text"], None),
    "conversations": (["id", "messages"], conversation_text),
    "preferences": (["id", "prompt", "chosen", "rejected"], preference_text),
    "problems": (["id", "problem", "solution", "answer"], problem_text),
}
"""By kind: the columns that are read, and how they become a text (None: they are one)."""


def tasks_of(kind: str, node: str, entries: Sequence[FileEntry]) -> list[dict[str, Any]]:
    """The shards of one artifact, each the argument of a task. Raises InputError for a file that is damaged."""
    if kind == "images":
        parts = (e for e in entries if Path(e.path).match("part-*.jsonl"))
        return [{"entry": entry.value(), "node": node} for entry in sorted(parts, key=lambda entry: entry.path)]
    with _damage_told(node):
        return [asdict(shard) | {"node": node} for shard in shards_of([entries])]


def read_texts(kind: str, shard: Mapping[str, Any]) -> Iterator[tuple[list[str], pa.Array]]:
    """Ids and texts of a shard, a batch at a time, in order. Raises InputError for a file that is damaged."""
    place = dict(shard)
    node = place.pop("node")
    if kind == "images":
        yield from _lines(FileEntry.model_validate(place["entry"]))
        return
    columns, text = TEXTS[kind]
    with _damage_told(node):
        for batch in read_shard(Shard(**place), columns=columns, rows=PARQUET_ROWS):
            ids = batch.column("id").to_pylist()
            if text is None:
                yield ids, batch.column("text")
            else:
                yield ids, pa.array([text(row) for row in batch.to_pylist()], pa.large_string())


def _lines(entry: FileEntry) -> Iterator[tuple[list[str], pa.Array]]:
    ids: list[str] = []
    texts: list[str] = []
    for row in visual.read_part(entry):
        ids.append(row.id)
        texts.append("\n".join(turn.text.replace(visual.IMAGE, "") for turn in row.turns))
        if len(ids) == LINES:
            yield ids, pa.array(texts, pa.large_string())
            ids, texts = [], []
    if ids:
        yield ids, pa.array(texts, pa.large_string())


@contextmanager
def _damage_told(node: str) -> Iterator[None]:
    """A file that is no Parquet, or has not the columns, is told in a line with whose it is."""
    try:
        yield
    except Damaged:
        raise
    except (InputError, pa.ArrowException, KeyError) as error:
        raise InputError(f"training data of {node}: {' '.join(str(error).split())}; run {node} again") from error
