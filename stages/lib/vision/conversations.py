"""`ImageConversations` on disk: rows in LLaVA's schema, images in uncompressed zip files.

    part-NNNNN.jsonl    {"id", "image"?, "conversations": [{"from": "human" | "gpt", "value"}, ..]}; no image: text only
    images-NNNNN.zip    images under the names that the rows use, as they were found

A zip instead of a folder: hundreds of thousands of small objects would cost a request each.
"""

from __future__ import annotations

import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stages.core.artifacts import FileEntry
from stages.core.errors import InputError
from stages.core.json_text import parsed_json
from stages.core.reading import open_file

IMAGE = "<image>"
"""Stands in a human turn where the image belongs; the model puts it after BOS wherever it stands."""
ROWS_A_PART = 100_000
ZIP_BYTES = 2**30
DAMAGED_ZIP = (
    OSError, EOFError, IndexError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error,
    lzma.LZMAError,
)  # fmt: skip
"""What the library raises for a zip file that is damaged, encrypted, or packed in a way that it does not know."""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed date: the same images must give the same bytes
ROLES = {"human": True, "user": True, "gpt": False, "assistant": False}
"""Who speaks: True for the person. LLaVA writes human and gpt; some of its derivatives the other pair."""


class RowProblem(Exception):
    """A row that cannot be used; the message is the reason under which it is counted."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    human: bool
    text: str


@dataclass(frozen=True)
class Conversation:
    """One row."""

    id: str
    image: str | None
    turns: tuple[Turn, ...]

    def row(self) -> dict[str, Any]:
        """As LLaVA writes it."""
        names = {True: "human", False: "gpt"}
        head = {"id": self.id} | ({"image": self.image} if self.image is not None else {})
        return head | {"conversations": [{"from": names[t.human], "value": t.text} for t in self.turns]}


def parse(row: Any) -> Conversation:
    """Check one row of LLaVA's JSON. Raises RowProblem with the reason."""
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list) or not row["conversations"]:
        raise RowProblem("no conversations")
    turns = []
    for value in row["conversations"]:
        if not isinstance(value, dict) or value.get("from") not in ROLES or not isinstance(value.get("value"), str):
            raise RowProblem("a turn without role or text")
        turns.append(Turn(ROLES[value["from"]], value["value"]))
    if any(turn.human != (number % 2 == 0) for number, turn in enumerate(turns)):
        raise RowProblem("turns do not alternate")
    if turns[-1].human:
        raise RowProblem("ends with a question")
    image = row.get("image", row.get("images"))
    if isinstance(image, list):  # some derivatives write a list, also of one or none
        if len(image) > 1:
            raise RowProblem("more than one image")
        image = image[0] if image else None
    if image is not None and (not isinstance(image, str) or not image):
        raise RowProblem("image is no name")
    marks = sum(turn.text.count(IMAGE) for turn in turns)
    if marks != (image is not None):
        raise RowProblem(f"{min(marks, 2)}{'+' if marks > 2 else ''} <image> marks, {int(image is not None)} images")
    if not any(turn.text.replace(IMAGE, "").strip() for turn in turns if not turn.human):
        raise RowProblem("no answer")
    return Conversation(str(row.get("id", "")), image, tuple(turns))


def write_rows(folder: Path, rows: Iterable[Conversation]) -> int:
    """Write the parts; returns how many rows."""
    count, stream = 0, None
    try:
        for row in rows:
            if count % ROWS_A_PART == 0:
                if stream is not None:
                    stream.close()
                stream = open(folder / f"part-{count // ROWS_A_PART:05d}.jsonl", "w", encoding="utf-8")  # noqa: SIM115
            assert stream is not None
            stream.write(json.dumps(row.row(), ensure_ascii=False) + "\n")
            count += 1
    finally:
        if stream is not None:
            stream.close()
    return count


def read_rows(folder: Path) -> Iterator[Conversation]:
    """The rows in order. Raises InputError naming file and line: what a stage wrote must be right."""
    for path in sorted(folder.glob("part-*.jsonl")):
        with open(path, "rb") as stream:
            yield from _rows_of(stream, path.name)


def read_part(entry: FileEntry) -> Iterator[Conversation]:
    """The rows of one stored part, as `read_rows`."""
    with open_file(entry) as stream:
        yield from _rows_of(stream, entry.path)


def _rows_of(stream: BinaryIO, name: str) -> Iterator[Conversation]:
    for number, line in enumerate(stream, 1):
        try:
            yield parse(parsed_json(line))
        except (ValueError, RowProblem) as error:
            raise InputError(f"{name}, line {number} is no conversation: {error}") from error


class ImageWriter:
    """Writes images into zip files of about a gigabyte, each name once, uncompressed (they are compressed already)."""

    def __init__(self, folder: Path, stem: str = "images") -> None:
        self._folder, self._stem = folder, stem
        self._zip: zipfile.ZipFile | None = None
        self._bytes = self._files = 0
        self.names: set[str] = set()

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._zip is not None:
            self._zip.close()

    def add(self, name: str, data: bytes) -> None:
        """Add an image, unless the name is there already."""
        if name in self.names:
            return
        if self._zip is None or self._bytes > ZIP_BYTES:
            self.__exit__()
            self._zip = zipfile.ZipFile(self._folder / f"{self._stem}-{self._files:05d}.zip", "w", zipfile.ZIP_STORED)
            self._files, self._bytes = self._files + 1, 0
        self._zip.writestr(zipfile.ZipInfo(name, _EPOCH), data)
        self._bytes += len(data)
        self.names.add(name)


class ImageReader(Mapping[str, bytes]):
    """The images of zip files, by name: of local ones, or of stored ones, of which the images asked for are read.
    Members larger than `limit` are not read (a KeyError names them).
    """

    def __init__(self, archives: Iterable[Path | FileEntry], limit: int) -> None:
        self._limit = limit
        self._where: dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
        self._zips: list[zipfile.ZipFile] = []
        for source in sorted(archives, key=str):
            try:
                archive = zipfile.ZipFile(open_file(source) if isinstance(source, FileEntry) else source)
                members = [info for info in archive.infolist() if not info.is_dir()]
            except DAMAGED_ZIP as error:
                name = Path(source.path).name if isinstance(source, FileEntry) else source.name
                raise InputError(f"{name} is no zip file: {error}") from error
            self._zips.append(archive)
            self._where.update({info.filename: (archive, info) for info in members})

    def __getitem__(self, name: str) -> bytes:
        archive, info = self._where[name]
        if info.file_size > self._limit:
            raise KeyError(f"{name} has {info.file_size} bytes")
        try:
            return archive.read(info)
        except DAMAGED_ZIP as error:
            raise KeyError(f"{name}: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def size(self, name: str) -> int:
        """The bytes of an image; 0 where there is none."""
        return self._where[name][1].file_size if name in self._where else 0

    def close(self) -> None:
        """Close the files."""
        for archive in self._zips:
            archive.close()
