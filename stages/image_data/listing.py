"""Conversations and benchmarks that somebody else made: each row and image is checked, and counted by reason."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.image_data.spec import BenchmarkFiles, ConversationFile, ImageDataConfig
from stages.lib.formats.compression import Damaged, lines_of, text_of
from stages.lib.vision.benchmarks import BENCHMARKS, read_questions
from stages.lib.vision.conversations import Conversation, ImageReader, ImageWriter, RowProblem, parse
from stages.lib.vision.images import MAX_BYTES, ImageProblem, decode, read_image

CHUNK = 512
"""Rows whose images are in memory at one time."""


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

    def read(self, name: str) -> bytes:
        """An image's bytes. Raises ImageProblem."""
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise ImageProblem("name leads outside its folder")
        for folder in self._folders:
            if (folder / name).exists():
                return read_image(folder / name)
        if name not in self._zips:
            raise ImageProblem("missing file")
        try:
            return self._zips[name]
        except KeyError as error:
            raise ImageProblem("damaged zip entry, or file too large") from error

    def checked(self, name: str) -> tuple[bytes, tuple[str, ...]] | ImageProblem:
        """Bytes and remarks of an image that decodes, or what is wrong with it."""
        try:
            data = self.read(name)
            return data, decode(data)[1]
        except ImageProblem as problem:
            return problem


class Counts:
    """What was left out and why, with the first row of each reason."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def drop(self, reason: str, place: str) -> None:
        """Count a row that is left out."""
        self.dropped[reason] += 1
        self.first.setdefault(reason, place)


def read_json(file: ConversationFile, where: str) -> Iterator[Any]:
    """The rows of a JSON list or of JSON lines. Raises InputError."""
    path = Path(file.path)
    try:
        first = next(lines_of(path), "")
        if first.startswith("["):
            yield from json.loads(text_of(path))
        else:
            yield from map(json.loads, lines_of(path))
    except (OSError, ValueError, RecursionError, Damaged) as error:
        raise InputError(f"{where}: {path.name} cannot be read: {' '.join(str(error).split())}") from error


def rows(ctx: Context[ImageDataConfig], counts: Counts, writer: ImageWriter) -> Iterator[tuple[str, Conversation]]:
    """(source, row) of every usable row; their images go to the writer."""
    config = ctx.config
    with ThreadPoolExecutor(config.threads) as pool:
        for file in config.sources:
            if file.kind not in config.train_on:
                continue
            source = ImageSource(file.images, f"{ctx.node}.sources, {file.name}")
            stream = islice(enumerate(read_json(file, f"{ctx.node}.sources, {file.name}")), 0, None, file.every)
            known: dict[str, ImageProblem | None] = {}
            while chunk := list(islice(stream, CHUNK)):
                yield from ((file.name, row) for row in _chunk(file, source, chunk, known, counts, writer, pool))
                ctx.progress(chunk[-1][0] + 1, None, "rows")


def _chunk(
    file: ConversationFile,
    source: ImageSource,
    chunk: list[tuple[int, Any]],
    known: dict[str, ImageProblem | None],
    counts: Counts,
    writer: ImageWriter,
    pool: ThreadPoolExecutor,
) -> Iterator[Conversation]:
    """The usable rows of one chunk, in order. known: images of this source that were looked at, and what is wrong with
    them.
    """
    parsed: list[tuple[str, Conversation]] = []
    for number, row in chunk:
        counts.rows[file.name] += 1
        try:
            parsed.append((f"{file.name}, row {number + 1}", parse(row)))
        except RowProblem as problem:
            counts.drop(str(problem), f"{file.name}, row {number + 1}")
    names = list(dict.fromkeys(row.image for _, row in parsed if row.image is not None and row.image not in known))
    for name, found in zip(names, pool.map(source.checked, names), strict=True):
        if isinstance(found, ImageProblem):
            known[name] = found
            continue
        known[name] = None
        counts.remarks.update(found[1])
        writer.add(f"{file.name}/{name}", found[0])
    for place, row in parsed:
        if row.image is None:
            yield Conversation(row.id, None, row.turns)
        elif (problem := known[row.image]) is not None:
            counts.drop(f"image: {problem}", f"{place} ({row.image})")
        else:
            yield Conversation(row.id, f"{file.name}/{row.image}", row.turns)


def judge(ctx: Context[ImageDataConfig], counts: Counts) -> None:
    """Refuse data of which too much is unusable: such a data set is not the one that was meant."""
    dropped, total = counts.dropped.total(), counts.rows.total()
    if not total or dropped == total:
        raise InputError(f"{ctx.node}: none of {total} rows can be used{_reasons(counts)}")
    if dropped > ctx.config.max_unusable * total:
        raise InputError(
            f"{ctx.node}: {dropped} of {total} rows cannot be used{_reasons(counts)}; mend them, or raise "
            f"{ctx.node}.max_unusable (now {ctx.config.max_unusable})"
        )


def _reasons(counts: Counts) -> str:
    if not counts.dropped:
        return ""
    parts = [f"{number} {reason} (first: {counts.first[reason]})" for reason, number in counts.dropped.most_common()]
    return ": " + "; ".join(parts)


def import_benchmark(ctx: Context[ImageDataConfig], name: str, files: BenchmarkFiles, folder: Path) -> int:
    """Copy one benchmark into the suite. All of its images must be usable: scores of fewer questions do not compare."""
    where = f"{ctx.node}.benchmarks.{name}"
    (folder / name).mkdir(parents=True)
    for file in BENCHMARKS[name].files:
        origin = Path(files.folder) / file
        if not origin.is_file():
            raise ConfigError(f"{where}: there is no {file} in {files.folder!r}")
        shutil.copyfile(origin, folder / name / file)
    questions = read_questions(folder, name)
    source = ImageSource(files.images, where)
    names = list(dict.fromkeys(question.image for question in questions))
    with ImageWriter(folder, name) as writer, ThreadPoolExecutor(ctx.config.threads) as pool:
        for start in range(0, len(names), CHUNK):
            part = names[start : start + CHUNK]
            for image, found in zip(part, pool.map(source.checked, part), strict=True):
                if isinstance(found, ImageProblem):
                    raise InputError(f"{where}: image {image} cannot be used: {found}")
                writer.add(image, found[0])
    return len(questions)
