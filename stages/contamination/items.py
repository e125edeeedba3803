"""The evaluation items of suites, and the text of each: question and right answer, or all strings of its row."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import InputError
from stages.lib.formats.suites import read_suite
from stages.lib.vision.benchmarks import BENCHMARKS, read_questions

FIELDS = Path(__file__).with_name("fields.toml")
ALL_STRINGS = "all strings"
"""How the text of an item is called that no table names the fields of."""
ROWS = 1024


@dataclass(frozen=True)
class Split:
    """The items of one split, in order. origin: as in the suite's listing ('machine': made, not the benchmark)."""

    data_set: str
    config: str
    split: str
    origin: str
    fields: str
    texts: list[str]


@functools.cache
def known_fields() -> Mapping[str, Mapping[str, Any]]:
    """The table of fields, by data set."""
    return tomllib.loads(FIELDS.read_text(encoding="utf-8"))


def item_text(data_set: str, row: Mapping[str, Any]) -> str:
    """The text of a row: question and right answer; of a data set that is not known, all strings.

    A row without an answer (test splits whose labels are secret) is its question alone.
    """
    known = known_fields().get(data_set)
    if known is None or not any(name in row for name in known["question"]):
        return "\n".join(strings(row))
    question = "\n".join(part for name in known["question"] for part in strings(row.get(name)))
    answer = "\n".join(strings(_answer(known["answer"], row)))
    blank = known.get("blank")
    if blank and answer and question.count(blank) == 1:
        return question.replace(blank, answer)
    return f"{question}\n{answer}" if answer else question


def strings(value: Any) -> Iterator[str]:
    """All strings in a value, in order. Bytes are none."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def _answer(how: str | Mapping[str, Any], row: Mapping[str, Any]) -> Any:
    """The right answer; None where the row does not say which one that is."""
    if isinstance(how, str):
        return row.get(how)
    at = row.get(how["at"])
    choices = [row.get(name) for name in how["columns"]] if "columns" in how else _inside(row, how["of"])
    if not isinstance(choices, list):
        return None
    if "labels" in how:
        labels = _inside(row, how["labels"])
        place = labels.index(at) if isinstance(labels, list) and at in labels else -1
    else:
        place = int(str(at)) - how.get("first", 0) if str(at).isdecimal() else -1
    return choices[place] if 0 <= place < len(choices) else None


def _inside(row: Any, path: str) -> Any:
    for name in path.split("."):
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


def read_splits(folder: Path, left_out: Collection[str]) -> Iterator[Split]:
    """The splits of an `EvalSuite`, by name. Raises InputError naming what cannot be read."""
    for data_set in sorted(read_suite(folder).data_sets, key=lambda d: d.id):
        fields = "question and answer" if data_set.id in known_fields() else ALL_STRINGS
        for config, splits in sorted(data_set.rows.items()):
            for split in sorted(splits.keys() - set(left_out)):
                path = folder / data_set.id / config / f"{split}.parquet"
                texts = [item_text(data_set.id, row) for row in _rows(path, folder)]
                yield Split(data_set.id, config, split, data_set.origin, fields, texts)


def _rows(path: Path, folder: Path) -> Iterator[dict[str, Any]]:
    where = path.relative_to(folder).as_posix()
    try:
        with pq.ParquetFile(path) as parquet:
            texts = [n for n, t in zip(parquet.schema_arrow.names, parquet.schema_arrow.types, strict=True) if _has(t)]
            for batch in parquet.iter_batches(batch_size=ROWS, columns=texts):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{where} of the evaluation suite cannot be read: {' '.join(str(error).split())}; run the node that made"
            " the suite again"
        ) from error


def _has(type: pa.DataType) -> bool:
    """Whether a column is read: pictures are not."""
    if pa.types.is_struct(type):
        return all(_has(type.field(n).type) for n in range(type.num_fields))
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        return _has(type.value_type)
    return not (pa.types.is_binary(type) or pa.types.is_large_binary(type))


def read_image_splits(folder: Path) -> Iterator[Split]:
    """The splits of an `ImageSuite`: the questions, with their answers where these are words. Raises InputError."""
    for data_set in sorted(read_suite(folder).data_sets, key=lambda d: d.id):
        if data_set.id not in BENCHMARKS:
            raise InputError(f"the visual suite holds {data_set.id}; known are {', '.join(BENCHMARKS)}")
        texts = []
        for question in read_questions(folder, data_set.id):
            answers = question.truth if isinstance(question.truth, tuple) else (question.truth,)
            words = dict.fromkeys(a for a in answers if isinstance(a, str))
            texts.append("\n".join([question.asked, *words]))
        split = BENCHMARKS[data_set.id].split
        yield Split(data_set.id, "default", split, data_set.origin, "question and answers", texts)
