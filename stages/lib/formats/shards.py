"""TokenShards: packed windows of token ids, which training reads by ranges where they are stored.

    index.json            sizes, dtype, tokenizer digest, sources
    shard-NNNNN.bin       windows, one after the other: `sequence_length` ids, uint16 (vocabulary up to 65,536) or
                          uint32, and the CRC32 of their bytes

A window is held against its CRC32 before anybody sees it: the store's own sums are of far larger pieces than are read
here. It has exactly `sequence_length` ids; labels are the same ids, shifted inside the window. Every document ends with
</s>, so the position after an </s> begins another document: `document_ids` recovers which token belongs to which, and
attention can be reset there. (Text can never contain the id of </s>: see `stages.lib.formats.vocabulary.load`.)
"""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from stages.core.artifacts import FileEntry
from stages.core.errors import InputError
from stages.core.json_text import parsed_json
from stages.core.reading import open_file, read_checked, unreadable

INDEX = "index.json"
VERSION = 2
MOST_ROWS = 1 << 16
"""Windows of a shard."""
PAGE_BYTES = 256 << 10
"""Most bytes that are read at a time: consecutive windows."""
CACHE_BYTES = 64 << 20
"""Pages that are kept, where nobody says otherwise."""
THREADS = 8
"""Pages on their way at once."""


def dtype_for(vocab_size: int) -> str:
    """The narrowest type that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.bin"


def row_type(sequence_length: int, dtype: str | np.dtype) -> np.dtype:
    """A window as it is stored."""
    return np.dtype([("ids", dtype, (sequence_length,)), ("crc", "<u4")])


def stored_rows(windows: np.ndarray) -> np.ndarray:
    """Windows [n, sequence_length] as they are stored: [n], `row_type`."""
    rows = np.empty(len(windows), row_type(windows.shape[1], windows.dtype))
    rows["ids"] = windows
    rows["crc"] = [zlib.crc32(window) for window in np.ascontiguousarray(windows)]
    return rows


def check_ids(windows: np.ndarray, vocab_size: int) -> None:
    """Raise ValueError where an id lies outside the vocabulary."""
    if windows.size and not 0 <= int(windows.min()) <= int(windows.max()) < vocab_size:
        raise ValueError(f"ids run from {windows.min()} to {windows.max()}, the vocabulary has {vocab_size}")


def write_index(
    folder: Path,
    rows: Sequence[int],
    sequence_length: int,
    vocab_size: int,
    eos_id: int,
    tokenizer_digest: str,
    **extra: Any,
) -> None:
    """Write `index.json`. rows: windows of each shard, in order; extra: what else it is to say."""
    index = {
        "version": VERSION,
        "dtype": dtype_for(vocab_size),
        "sequence_length": sequence_length,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
        "tokenizer_digest": tokenizer_digest,
        "rows": list(rows),
        **extra,
    }
    (Path(folder) / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")


class ShardWriter:
    """Write windows into shards of `rows_per_shard`. A context manager; the index is written at a clean end only."""

    def __init__(
        self,
        folder: Path,
        sequence_length: int,
        vocab_size: int,
        eos_id: int,
        tokenizer_digest: str,
        rows_per_shard: int = MOST_ROWS,
    ) -> None:
        self.folder, self.sequence_length, self.eos_id = Path(folder), sequence_length, eos_id
        self.vocab_size, self.tokenizer_digest, self.rows_per_shard = vocab_size, tokenizer_digest, rows_per_shard
        self.dtype = np.dtype(dtype_for(vocab_size))
        self.windows = 0
        self.extra: dict[str, Any] = {}
        self._rows: list[int] = []
        self._stream: BinaryIO | None = None

    def add(self, windows: np.ndarray) -> None:
        """Append windows: [n, sequence_length] of ids."""
        if windows.ndim != 2 or windows.shape[1] != self.sequence_length:
            raise ValueError(f"windows must be [n, {self.sequence_length}], not {windows.shape}")
        check_ids(windows, self.vocab_size)
        while len(windows):
            stream = self._stream if self._stream and self._rows[-1] < self.rows_per_shard else self._next()
            part, windows = np.split(windows, [min(len(windows), self.rows_per_shard - self._rows[-1])])
            stream.write(stored_rows(part.astype(self.dtype)).data)
            self._rows[-1] += len(part)
            self.windows += len(part)

    def _next(self) -> BinaryIO:
        """Close the shard at hand and open another."""
        if self._stream is not None:
            self._stream.close()
        self._stream = open(self.folder / shard_name(len(self._rows)), "wb")  # noqa: SIM115
        self._rows.append(0)
        return self._stream

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if kind is not None:
            return
        write_index(
            self.folder,
            self._rows,
            self.sequence_length,
            self.vocab_size,
            self.eos_id,
            self.tokenizer_digest,
            **self.extra,
        )


class Shards:
    """Windows of a folder of an artifact, read as they are asked for. `len()` is the number of windows.

    For one thread at a time. `page`: windows that are read together, a power of two; pages begin at its multiples.
    """

    def __init__(self, index: dict[str, Any], entries: dict[str, FileEntry], cache_bytes: int = CACHE_BYTES) -> None:
        self.index = index
        self.sequence_length, self.vocab_size, self.eos_id = (
            index["sequence_length"],
            index["vocab_size"],
            index["eos_id"],
        )
        self.tokenizer_digest = index["tokenizer_digest"]
        self._row = row_type(self.sequence_length, index["dtype"])
        self._files: list[FileEntry] = []
        for number, rows in enumerate(index["rows"]):
            name, expected = shard_name(number), rows * self._row.itemsize
            entry = entries.get(name)
            if entry is None or entry.size != expected:
                size = "no" if entry is None else entry.size
                raise InputError(f"{name} has {size} bytes, but {INDEX} says {expected}: the shards are damaged")
            self._files.append(entry)
        self._ends = np.cumsum(index["rows"], dtype=np.int64)
        self.page = 1 << max(0, (PAGE_BYTES // self._row.itemsize).bit_length() - 1)
        self.cache_bytes = cache_bytes
        self._pages: OrderedDict[int, np.ndarray] = OrderedDict()  # the one used last comes last
        self._readers = ThreadPoolExecutor(THREADS, thread_name_prefix="windows")

    @classmethod
    def open(cls, entries: Sequence[FileEntry], under: str = "") -> Shards:
        """The shards under a folder of an artifact. Raises InputError when its index and its files disagree, and what
        reading raises.
        """
        named = {entry.path.removeprefix(under): entry for entry in entries if entry.path.startswith(under)}
        if INDEX not in named:
            raise InputError(f"{under}{INDEX} is missing")
        with open_file(named[INDEX]) as stream:
            text = stream.read()
        try:
            index = parsed_json(text)
        except ValueError as error:
            raise unreadable(named[INDEX], error) from error
        if not isinstance(index, dict) or index.get("version") != VERSION:
            version = index.get("version") if isinstance(index, dict) else None
            raise InputError(f"{INDEX} has version {version}, this code reads {VERSION}: run its producer again")
        try:
            return cls(index, named)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{INDEX} is incomplete or damaged: {error}") from error

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def page_bytes(self) -> int:
        """What a page takes up."""
        return self.page * self._row.itemsize

    def windows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Windows by number: [n, sequence_length], the dtype on disk. Raises IndexError outside 0..len-1, InfraError
        when the store fails, Damaged (InputError for a file of this machine) when a window is lost or another.
        """
        places = np.asarray(numbers, np.int64)
        out = np.empty((len(places), self.sequence_length), self._row["ids"].base)
        if not len(places):
            return out
        if places.min() < 0 or places.max() >= len(self):
            raise IndexError(f"windows {places.min()} to {places.max()} of {len(self)}")
        pages, which = np.unique(places // self.page, return_inverse=True)
        missing = [page for page in pages.tolist() if page not in self._pages]
        self._pages.update(zip(missing, self._readers.map(self._read_page, missing), strict=True))
        for number, page in enumerate(pages.tolist()):
            self._pages.move_to_end(page)
            mine = which == number
            out[mine] = self._pages[page][places[mine] - page * self.page]
        while len(self._pages) * self.page_bytes > self.cache_bytes:
            self._pages.popitem(last=False)
        return out

    def _read_page(self, page: int) -> np.ndarray:
        """The windows of a page, verified: of one shard, or of several."""
        first, end = page * self.page, min((page + 1) * self.page, len(self))
        pieces = []
        while first < end:
            shard = int(np.searchsorted(self._ends, first, side="right"))
            last = min(end, int(self._ends[shard]))
            begins = int(self._ends[shard]) - self.index["rows"][shard]
            pieces.append(self._read(self._files[shard], first - begins, last - first))
            first = last
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _read(self, entry: FileEntry, first: int, count: int) -> np.ndarray:
        """Windows of one file, verified."""

        def problem(data: bytes) -> str:
            rows = np.frombuffer(data, self._row)
            for number, (ids, crc) in enumerate(zip(rows["ids"], rows["crc"].tolist(), strict=True), first):
                if zlib.crc32(ids) != crc:
                    return f"window {number} is not that of its CRC32"
            return ""

        size = self._row.itemsize
        return np.frombuffer(read_checked(entry, first * size, count * size, problem), self._row)["ids"]

    def document_ids(self, windows: np.ndarray) -> np.ndarray:
        """Which document of its window each token belongs to: same shape as `windows`, int32, from 0."""
        ends = np.zeros(windows.shape, np.int32)
        ends[..., 1:] = windows[..., :-1] == self.eos_id
        return np.cumsum(ends, axis=-1, dtype=np.int32)

    def close(self) -> None:
        """Let its threads and pages go."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._pages.clear()
