"""Rows of data set files as they stand in them: JSON lines, JSON lists and Parquet, here or far away, packed or not,
whatever mark their text begins with.

    files = own_files(datasets.load_dataset_builder(name))      # which files a configuration's splits have is the hub's
    own rule rows = FileRows("data set a/b", files["train"], folder)     # fetched when they are first asked for, each
    held against its promise len(rows), rows.select([0, 7]), rows.table()

No schema is made up from the first rows: files whose fields differ are read row by row, each with the fields it has.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import urllib.parse
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import InfraError, InputError
from stages.core.files import inside, replacing
from stages.lib.formats import json_rows
from stages.lib.formats.compression import CODECS, Damaged
from stages.lib.formats.raw_file import opened
from stages.lib.formats.sources import Format, RawFile
from stages.lib.formats.uris import named, shown

KINDS: dict[str, Format] = {"jsonl": "jsonl", "json": "jsonl", "ndjson": "jsonl", "parquet": "parquet", "warc": "warc"}
"""Ending of a file, without that of its packing: its format."""
CONNECTIONS = 4
RECORD_BYTES = 64 << 20
"""A longer row is refused: bounds memory (`ingest` has the same bound)."""
BATCH_ROWS, BATCH_BYTES = 1024, 16 << 20
"""Rows of a Parquet batch: fewer where they are large."""
HERE = Path("/")
"""Local files have whole addresses: no folder is theirs."""


MAX_BAD_FRACTION = 0.5
"""More bad rows than this: the file is taken to be broken (`ingest` has the same default)."""


class Skipped:
    """Bad rows of files, counted by reason, with the first place of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: dict[str, str] = {}

    def add(self, reason: str, place: str) -> None:
        """Count one."""
        self.counts[reason] += 1
        self.places.setdefault(reason, place)

    def summary(self) -> str:
        """The reasons, each with its count and first place."""
        return ", ".join(f"{count} {reason}, first {self.places[reason]}" for reason, count in self.counts.items())


class Rows(Protocol):
    """The rows of a split, in order."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def select(self, indices: Sequence[int], /) -> Any:
        """The rows of these numbers; ascending."""


def kind(file: str) -> Format | None:
    """A file's format by its name; None where no reader here reads it."""
    endings = urllib.parse.urlsplit(file).path.rpartition("/")[2].lower().split(".")
    return KINDS.get(endings[-2] if len(endings) > 2 and endings[-1] in CODECS else endings[-1])


def addresses(builder: Any) -> dict[str, list[str]]:
    """The addresses of the files of each split, in the hub's order. builder: of `datasets`."""
    data_files = builder.config.data_files or {}
    return {
        str(split): [_quoted(one) if "://" in one else Path(one).as_uri() for one in map(str, files)]
        for split, files in data_files.items()
    }


def _quoted(address: str) -> str:
    """An address of `datasets`, which writes names as they are, with what would end its path or be taken for a code."""
    return address.replace("%", "%25").replace("#", "%23").replace("?", "%3F")


def own_files(builder: Any) -> dict[str, list[RawFile]] | None:
    """The files of each split; None where they are of a kind, or have settings in their card, that `datasets` alone
    reads.
    """
    settings = builder.config
    if (
        any(getattr(settings, name, None) is not None for name in ("field", "columns", "filters"))
        or (getattr(settings, "encoding", None) or "utf-8") != "utf-8"
    ):
        return None
    by_split: dict[str, list[RawFile]] = {}
    for split, files in addresses(builder).items():
        by_split[split] = []
        for uri in files:
            format = kind(uri)
            if format not in ("jsonl", "parquet"):
                return None
            by_split[split].append(RawFile(uri=uri, format=format, source="hub"))
    return by_split or None


class FileRows:
    """The rows of some files one after another. Raises InputError naming the file and row that cannot be used,
    InfraError for the way to it.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[RawFile],
        folder: Path,
        features: Mapping[str, Any] | None = None,
        promised: int | None = None,
        skipped: Skipped | None = None,
    ) -> None:
        """name: for errors; folder: where remote files are kept; features: what the card declares; promised: how many
        rows it says there are; skipped: gets the bad lines of JSON files, which cost their row alone; without it they
        are errors.
        """
        self._name, self._files, self._folder, self._promised = name, files, folder, promised
        self.skipped = skipped
        self._labels = _labels(features)
        self._chosen: Sequence[int] | None = None

    @cached_property
    def _counted(self) -> list[tuple[RawFile, int]]:
        """The files on this machine, each with the number of its rows."""
        with self._telling():
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                try:
                    here = list(pool.map(lambda file: _fetched(file, self._folder), self._files))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            counted = [(file, _count(file, self.skipped)) for file in here]
        total = sum(count for _, count in counted)
        bad = sum(self.skipped.counts.values()) if self.skipped else 0
        if self.skipped and bad > MAX_BAD_FRACTION * (total + bad):
            raise InputError(
                f"{self._name} cannot be used: {bad} of its {total + bad} rows are bad ({self.skipped.summary()})"
            )
        if self._promised is not None and self._promised not in (total, total + bad):
            raise InputError(
                f"{self._name} cannot be used: its files hold {total} rows, and its card says {self._promised}"
            )
        return counted

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """An error names the data set too."""
        try:
            yield
        except (InputError, InfraError) as error:
            raise type(error)(f"{self._name}: {error}") from error

    def _passed_over(self) -> Skipped | None:
        """Bad rows were counted with the others: reading again counts none twice."""
        return None if self.skipped is None else Skipped()

    def __len__(self) -> int:
        return sum(count for _, count in self._counted) if self._chosen is None else len(self._chosen)

    def select(self, indices: Sequence[int], /) -> Self:
        """The rows of these numbers; ascending."""
        selection = copy(self)
        selection._counted = self._counted
        selection._chosen = list(indices) if self._chosen is None else [self._chosen[n] for n in indices]
        return selection

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first = 0
        for file, count in self._counted:
            numbers = None
            if self._chosen is not None:
                numbers = [
                    n - first
                    for n in self._chosen[bisect_left(self._chosen, first) : bisect_left(self._chosen, first + count)]
                ]
            if numbers is None or numbers:
                with self._telling():
                    yield from (self._labelled(file, row) for row in values(file, numbers, self._passed_over()))
            first += count

    def head(self, count: int) -> Head:
        """The first rows, read where they are: no file is fetched for them."""
        with self._telling():
            rows = (self._labelled(file, row) for file in self._files for row in values(file, None, self.skipped))
            return Head(list(islice(rows, count)), self.skipped)

    def first(self) -> dict[str, Any] | None:
        """The first row, read where it is; None where there is none. Bad lines before it are counted in `skipped`."""
        return next(
            (self._labelled(file, row) for file in self._files for row in values(file, None, self.skipped)), None
        )

    def table(self) -> pa.Table:
        """All rows. The columns of Parquet files have the types that they have there."""
        counted = self._counted
        with self._telling():
            try:
                return pa.concat_tables([self._table(file) for file, _ in counted], promote_options="permissive")
            except (pa.ArrowException, UnicodeEncodeError) as error:
                raise InputError(f"its rows make no table: {_line(error)}") from error

    def _table(self, file: RawFile) -> pa.Table:
        if file.format == "parquet":
            with opened(file, HERE) as raw:
                try:
                    table = pq.read_table(raw.stream)
                except (pa.ArrowException, OSError) as error:
                    raw.check()
                    raise InputError(f"{shown(file.uri)} cannot be used: {_line(error)}") from error
            if not any(
                name in table.column_names and not pa.types.is_integer(table.schema.field(name).type)
                for name in self._labels
            ):
                return table
        rows = [self._labelled(file, row) for row in values(file, None, self._passed_over())]
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: [row.get(name) for row in rows] for name in names})

    def _labelled(self, file: RawFile, row: dict[str, Any]) -> dict[str, Any]:
        """A row with classes as their numbers, where its card says that a column's words are names of classes."""
        if not self._labels:
            return row
        try:
            return {name: _number(self._labels.get(name), value) for name, value in row.items()}
        except ValueError as error:
            raise InputError(f"{shown(file.uri)} cannot be used: {_line(error)}") from error


class Head:
    """Rows that are in memory."""

    def __init__(self, rows: Sequence[dict[str, Any]], skipped: Skipped | None = None) -> None:
        self._rows, self.skipped = rows, skipped

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def select(self, indices: Sequence[int], /) -> Head:
        """The rows of these numbers."""
        return Head([self._rows[n] for n in indices], self.skipped)


def values(
    file: RawFile, numbers: Sequence[int] | None = None, skipped: Skipped | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a file, or those of some numbers, which ascend. skipped: see `FileRows`. Raises InputError or
    InfraError.
    """
    if file.format == "parquet":
        yield from _parquet(file, numbers)
    elif numbers is None:
        yield from _json(file, skipped)
    else:
        kept = set(numbers)
        yield from (row for number, row in enumerate(_json(file, skipped)) if number in kept)


def _json(file: RawFile, skipped: Skipped | None = None) -> Iterator[dict[str, Any]]:
    """JSON rows. What UTF-8 cannot hold stays in its string as lone surrogates: a row is refused, and counted, by those
    who use that string.
    """
    name = shown(file.uri)
    with opened(file, HERE) as raw:
        try:
            text = raw.text()
            whole = json_rows.begins_a_list(text)
            if whole:
                parsed = (
                    (f"{name}, {place}", value, reason)
                    for place, value, reason in json_rows.list_values(text, RECORD_BYTES)
                )
            else:
                parsed = (
                    (f"{name}:{number}", *json_rows.line_value(line, "surrogateescape"))
                    for number, _, line in json_rows.placed_lines(text, RECORD_BYTES)
                )
            for place, value, reason in parsed:
                if reason == json_rows.EMPTY:
                    continue
                if reason or not isinstance(value, dict):
                    # what is broken in a list takes all that follows with it: that is no single row
                    if skipped is not None and not (whole and reason):
                        skipped.add(reason or "not a JSON object", place)
                        continue
                    raise InputError(f"{place} cannot be used: {reason or 'not a JSON object'}")
                yield value
        except Damaged as error:
            raw.check()
            raise InputError(f"{name} cannot be used: {error}") from error


def _parquet(file: RawFile, numbers: Sequence[int] | None) -> Iterator[dict[str, Any]]:
    with opened(file, HERE) as raw:
        try:
            parquet = pq.ParquetFile(raw.stream if raw.stream.seekable() else io.BytesIO(raw.stream.read()))
            first = 0
            for group in range(parquet.num_row_groups):
                metadata = parquet.metadata.row_group(group)
                end = first + metadata.num_rows
                if numbers is None or bisect_left(numbers, first) < bisect_left(numbers, end):
                    size = max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))
                    for batch in parquet.iter_batches(batch_size=size, row_groups=[group], use_threads=False):
                        if numbers is not None:
                            inside = numbers[bisect_left(numbers, first) : bisect_left(numbers, first + batch.num_rows)]
                            first += batch.num_rows
                            batch = batch.take(pa.array([n - first + batch.num_rows for n in inside], pa.int64()))
                        yield from batch.to_pylist()
                first = end
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raw.check()
            raise InputError(f"{shown(file.uri)} cannot be used: {_line(error)}") from error


def _count(file: RawFile, skipped: Skipped | None = None) -> int:
    """How many rows a file has."""
    if file.format != "parquet":
        return sum(1 for _ in _json(file, skipped))
    with opened(file, HERE) as raw:
        try:
            return pq.ParquetFile(raw.stream).metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raw.check()
            raise InputError(f"{shown(file.uri)} cannot be used: {_line(error)}") from error


def _fetched(file: RawFile, folder: Path) -> RawFile:
    """A remote file on this machine: whole, or not there."""
    if file.uri.startswith("file://"):
        return file
    target = inside(folder / hashlib.sha256(file.uri.encode()).hexdigest()[:24], named(file.uri))
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial, opened(file, HERE) as raw, partial.open("wb") as out:
            try:
                shutil.copyfileobj(raw.stream, out, 1 << 20)
            except Damaged as error:  # packed for the way by the server
                raw.check()
                raise InfraError(f"{shown(file.uri)} cannot be read: {error}") from error
    return file.model_copy(update={"uri": target.as_uri()})


def _labels(features: Mapping[str, Any] | None) -> dict[str, Any]:
    """The declared features that have classes somewhere in them."""
    return {name: feature for name, feature in (features or {}).items() if "ClassLabel(" in repr(feature)}


def _number(feature: Any, value: Any) -> Any:
    """A value with classes as numbers. Raises ValueError for a name that is no class's."""
    if hasattr(feature, "str2int"):
        return feature.str2int(value) if isinstance(value, str) else value
    if isinstance(feature, dict) and isinstance(value, dict):
        return {name: _number(feature.get(name), one) for name, one in value.items()}
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return [_number(inner, one) for one in value] if inner is not None and isinstance(value, list) else value


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
