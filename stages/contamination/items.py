"""The evaluation items of suites, split by split."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import InputError
from stages.lib.evaluation.item_text import item_mark, item_text, known_fields
from stages.lib.formats.suites import read_suite
from stages.lib.vision.benchmarks import BENCHMARKS, read_questions

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
    marks: list[str]


def read_splits(folder: Path, left_out: Collection[str]) -> Iterator[Split]:
    """The splits of an `EvalSuite`, by name. Raises InputError naming what cannot be read."""
    for data_set in sorted(read_suite(folder).data_sets, key=lambda d: d.id):
        fields = "question and answer" if data_set.id in known_fields() else ALL_STRINGS
        for config, splits in sorted(data_set.rows.items()):
            for split in sorted(splits.keys() - set(left_out)):
                path = folder / data_set.id / config / f"{split}.parquet"
                texts = [item_text(data_set.id, row) for row in _rows(path, folder)]
                yield Split(data_set.id, config, split, data_set.origin, fields, texts, [item_mark(t) for t in texts])


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
        texts, marks = [], []
        for question in read_questions(folder, data_set.id):
            answers = question.truth if isinstance(question.truth, tuple) else (question.truth,)
            words = dict.fromkeys(a for a in answers if isinstance(a, str))
            texts.append("\n".join([question.asked, *words]))
            marks.append(item_mark(question.id))
        split = BENCHMARKS[data_set.id].split
        yield Split(data_set.id, "default", split, data_set.origin, "question and answers", texts, marks)
