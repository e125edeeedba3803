"""Images by name, in folders and zip files of this machine; one of the tasks that every image goes through once."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from stages.core.artifacts import FileEntry
from stages.core.errors import ConfigError
from stages.core.files import is_inside
from stages.core.reading import open_file
from stages.lib.vision.conversations import ZIP_BYTES, ImageReader, ImageWriter
from stages.lib.vision.image_decoding import MAX_BYTES, ImageProblem, decode, read_image

PROBLEMS, SUMS = "problems.json", "sums"


class ImageSource:
    """Images by name, in folders and zip files, the first that has it."""

    def __init__(self, places: Sequence[str], where: str) -> None:
        self._folders: list[Path] = []
        archives = []
        for place in places:
            path = Path(place)
            if path.is_dir():
                self._folders.append(path)
            elif path.is_file():
                archives.append(path)
            else:
                raise ConfigError(f"{where}: images {place!r} is neither a folder nor a zip file on this machine")
        self._zips = ImageReader(archives, MAX_BYTES)

    def _file(self, name: str) -> Path | None:
        """Where an image lies in a folder; None: not in one. Raises ImageProblem."""
        if not is_inside(str(PurePosixPath(name))):
            raise ImageProblem("name leads outside its folder")
        try:
            return next((folder / name for folder in self._folders if (folder / name).exists()), None)
        except (OSError, ValueError) as error:  # a name too long for a file, or with a zero byte
            raise ImageProblem("missing file") from error

    def read(self, name: str) -> bytes:
        """An image's bytes. Raises ImageProblem."""
        if (path := self._file(name)) is not None:
            return read_image(path)
        if name not in self._zips:
            raise ImageProblem("missing file")
        try:
            return self._zips[name]
        except KeyError as error:
            raise ImageProblem("damaged zip entry, or file too large") from error

    def size(self, name: str) -> int:
        """Its bytes, to share the work out by; 0 where it cannot be used."""
        try:
            path = self._file(name)
            return path.stat().st_size if path is not None else self._zips.size(name)
        except (ImageProblem, OSError):
            return 0


@functools.lru_cache(maxsize=2)
def image_source(places: tuple[str, ...], where: str) -> ImageSource:
    """Opened once a process: the table of contents of a zip file may be long."""
    return ImageSource(places, where)


class Share:
    """Shares rows out to parts, in order: to each `rows` of them, or a gigabyte of images that it is first to name."""

    def __init__(self, source: ImageSource, rows: int) -> None:
        self._source, self._rows = source, rows
        self._part_of: dict[str, int] = {}
        self._count = self._bytes = 0
        self.names: list[list[str]] = []
        """Of each part, the images that it is the first to name: its task looks at those."""
        self.elsewhere: list[set[int]] = []
        """Of each part, those before it that have images of its rows."""

    def add(self, name: str | None) -> int:
        """The part that a row with this image is in."""
        new = name is not None and name not in self._part_of
        size = self._source.size(name) if new and name is not None else 0
        if not self.names or self._count >= self._rows or (self._bytes and self._bytes + size > ZIP_BYTES):
            self.names.append([])
            self.elsewhere.append(set())
            self._count = self._bytes = 0
        part = len(self.names) - 1
        self._count, self._bytes = self._count + 1, self._bytes + size
        if name is not None and new:
            self._part_of[name] = part
            self.names[part].append(name)
        elif name is not None and self._part_of[name] != part:
            self.elsewhere[part].add(self._part_of[name])
        return part


def look(folder: Path, names: dict[str, Any], places: list[str], prefix: str, stem: str, where: str) -> dict[str, Any]:
    """Task: decode the listed images of a part once, and write those that can be used into a zip file; how many, their
    remarks and, in files, what is wrong with the others (PROBLEMS) and the SHA-256 of each.
    """
    source = image_source(tuple(places), where)
    remarks: Counter[str] = Counter()
    problems: dict[str, str] = {}
    with ImageWriter(folder, stem) as writer, open(folder / SUMS, "w", encoding="utf-8") as sums:
        for name in read_json_file(names):
            try:
                data = source.read(name)
                remarks.update(decode(data)[1])
            except ImageProblem as problem:
                problems[name] = str(problem)
                continue
            writer.add(prefix + name, data)
            sums.write(f"{prefix}{name} {hashlib.sha256(data).hexdigest()}\n")
    if problems:
        (folder / PROBLEMS).write_text(json.dumps(problems), encoding="utf-8")
    return {"images": len(writer.names), "remarks": remarks, "problems": len(problems)}


def read_json_file(entry: dict[str, Any]) -> Any:
    """The value of a file that another task has left."""
    with open_file(FileEntry.model_validate(entry)) as stream:
        return json.load(stream)
