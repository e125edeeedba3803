"""What is read, in which pieces: files, parts of large ones, several small ones; and under a limit, how much of each.

A piece of work is the same whatever number of workers there is, and so is what comes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.artifacts import FileEntry
from stages.core.errors import StageError
from stages.ingest.hub_files import files_of
from stages.ingest.readers import parted
from stages.lib.formats.raw_file import opened
from stages.lib.formats.sources import RawFile
from stages.lib.formats.uris import shown

PART_BYTES = 512 << 20
"""A larger file is read in parts of about this size, where its format allows it."""
TOGETHER_BYTES, TOGETHER_FILES = 32 << 20, 256
"""Small files are read together."""
MEASURED = 4_096
"""With more remote files than this nobody asks for their sizes: there is enough to share out."""
CONNECTIONS = 16
NOWHERE = Path("/dev/null")
"""The folder of files that are neither listed by address nor in the listing's artifact: there is none."""
SAMPLE = 10_000
"""Records that are read of one file at most under a limit, when there are enough files."""


@dataclass(frozen=True)
class WorkUnit:
    """Files to be read by one task, whole or their first records only; one file alone may be read in part."""

    files: tuple[RawFile, ...]
    part: tuple[int, int] | None = None
    size: int | None = None
    """Bytes of a file that is read in part."""
    records: tuple[int, ...] | None = None
    """How many first records are read of each file at most."""


def expanded(listing: Sequence[RawFile]) -> list[RawFile]:
    """The listing with the files of data sets in their places."""
    return [one for file in listing for one in (files_of(file) if file.format == "hf" else (file,))]


def measure(folder: Path, files: Sequence[Mapping[str, Any]], raw: Mapping[str, Any]) -> list[int | None]:
    """A task: the size of each file, bytes; None where it is not known. raw: as in `read_task.read`."""

    def size(value: Mapping[str, Any]) -> int | None:
        file = RawFile.model_validate(value)
        if file.uri in raw:
            return FileEntry.model_validate(raw[file.uri]).size
        with opened(file, NOWHERE) as stream:
            size = stream.size
        for uri in file.mirrors if size is None else ():  # one server may not tell what another does
            with suppress(StageError), opened(file.model_copy(update={"uri": uri, "mirrors": ()}), NOWHERE) as stream:
                size = size or stream.size
        return size

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(size, files))


def local(file: RawFile) -> bool:
    """Whether a file lies on this machine."""
    return "://" not in file.uri or file.uri.startswith("file://")


def cut(files: Sequence[RawFile], sizes: Sequence[int | None]) -> list[WorkUnit]:
    """All files as pieces of work, in their order."""
    units: list[WorkUnit] = []
    held: list[RawFile] = []
    weight = 0
    for file, size in zip(files, sizes, strict=True):
        weighs = TOGETHER_BYTES if size is None and file.format != "code" else size or 0
        if held and (weight + weighs > TOGETHER_BYTES or len(held) >= TOGETHER_FILES):
            units.append(WorkUnit(tuple(held)))
            held, weight = [], 0
        if size is not None and size > PART_BYTES and parted(file):
            count = -(-size // PART_BYTES)
            edges = [size * n // count for n in range(count)] + [size]
            units += [WorkUnit((file,), (edges[n], edges[n + 1]), size) for n in range(count)]
            continue
        held.append(file)
        weight += weighs
    return [*units, WorkUnit(tuple(held))] if held else units


def together(files: Sequence[RawFile], shares: Sequence[tuple[int, int]]) -> list[tuple[int, WorkUnit]]:
    """A round of `sample` as pieces of work, in the order of the files: of few records several files make one, as small
    files do without a limit. Each with the number of its first file.
    """
    groups: list[list[tuple[int, int]]] = []
    records = 0
    for number, most in sorted(shares):
        if not groups or records + most > SAMPLE or len(groups[-1]) >= TOGETHER_FILES:
            groups.append([])
            records = 0
        groups[-1].append((number, most))
        records += most
    return [
        (group[0][0], WorkUnit(tuple(files[n] for n, _ in group), records=tuple(most for _, most in group)))
        for group in groups
    ]


def sample(files: Sequence[RawFile], limit: int) -> Generator[list[tuple[int, int]], int, None]:
    """Rounds of (number of a file, records to read of it at most), until `limit` records are read. Send the number that
    was.

    Files come in an order drawn by their addresses: what is read is no beginning of the listing. Of each at most
    `SAMPLE` records are taken, or more where there are too few files; where files turn out to be short, the next round
    has as many as there were so far.
    """
    order = sorted(range(len(files)), key=lambda n: hashlib.sha256(f"{shown(files[n].uri)}\0{n}".encode()).digest())
    share = max(SAMPLE, -(-limit // max(1, len(files))))
    left, at = limit, 0
    while left > 0 and at < len(order):
        count = min(len(order) - at, left, max(-(-left // share), at))
        numbers = order[at : at + count]
        at += count
        read = yield [(number, left // count + (n < left % count)) for n, number in enumerate(numbers)]
        left -= read
