"""TokenShards: packed windows of token ids on disk, memory-mapped by the trainer.

    index.json            sizes, dtype, tokenizer digest, sources
    shard-NNNNN.bin       windows, row-major [windows, sequence_length], uint16 (vocabulary up to 65,536) or uint32

A window has exactly `sequence_length` ids; labels are the same ids, shifted inside the window. Every document ends with
</s>, so the position after an </s> begins another document: `document_ids` recovers which token belongs to which, and
attention can be reset there. (Text can never contain the id of </s>: see `stages.lib.formats.vocabulary.load`.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from stages.core.errors import InputError

INDEX = "index.json"
VERSION = 1
MOST_ROWS = 1 << 16
"""Windows of a shard."""


def dtype_for(vocab_size: int) -> str:
    """The narrowest type that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.bin"


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
            stream.write(np.ascontiguousarray(part, self.dtype).data)
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
    """Memory-mapped windows of a folder. `len()` is the number of windows."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.index = index
        self.sequence_length, self.vocab_size, self.eos_id = (
            index["sequence_length"],
            index["vocab_size"],
            index["eos_id"],
        )
        self.tokenizer_digest = index["tokenizer_digest"]
        dtype = np.dtype(index["dtype"])
        self._parts = []
        for number, rows in enumerate(index["rows"]):
            path = Path(folder) / shard_name(number)
            expected = rows * self.sequence_length * dtype.itemsize
            if not path.is_file() or path.stat().st_size != expected:
                size = path.stat().st_size if path.is_file() else "no"
                raise InputError(f"{path.name} has {size} bytes, but {INDEX} says {expected}: the shards are damaged")
            self._parts.append(np.memmap(path, dtype, "r", shape=(rows, self.sequence_length)))
        self._ends = np.cumsum(index["rows"])

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Open a folder. Raises InputError when index and files disagree."""
        path = Path(folder) / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path.name} cannot be read: {error}") from error
        if not isinstance(index, dict) or index.get("version") != VERSION:
            version = index.get("version") if isinstance(index, dict) else None
            raise InputError(f"{path.name} has version {version}, this code reads {VERSION}")
        try:
            return cls(folder, index)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path.name} is incomplete or damaged: {error}") from error

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> np.ndarray:
        """One window: [sequence_length], the dtype on disk. Raises IndexError outside 0..len-1."""
        if not 0 <= row < len(self):
            raise IndexError(f"window {row} of {len(self)}")
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self._parts[part][row - (int(self._ends[part - 1]) if part else 0)]

    def document_ids(self, windows: np.ndarray) -> np.ndarray:
        """Which document of its window each token belongs to: same shape as `windows`, int32, from 0."""
        ends = np.zeros(windows.shape, np.int32)
        ends[..., 1:] = windows[..., :-1] == self.eos_id
        return np.cumsum(ends, axis=-1, dtype=np.int32)

    def batch(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows by number: (ids [B, T] int64, document ids [B, T] int32)."""
        windows = np.stack([self[int(row)] for row in rows]).astype(np.int64)
        return windows, self.document_ids(windows)
