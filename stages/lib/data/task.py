"""One task of a data stage: done in a folder of its own, whose files are stored, and then told in a receipt.

A job names a module-level function `function(folder, **arguments) -> JSON value`. The receipt is written last and once:
what a killed worker left is no result, of two that did the same task the first one counts, and a job that has a receipt
is not done again, by whatever attempt on whatever machine.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import reading
from stages.core.artifacts import FileEntry
from stages.core.context import TaskObjects
from stages.core.json_text import parsed_json
from stages.core.store_errors import Conflict
from stages.core.task_objects import objects_at, store_of
from stages.lib.formats import parquet_parts

ATTEMPTS = 4
"""How often a task may lose its worker before the stage gives up: a task that kills every worker must not go on for
ever.
"""
READERS = 16
"""Receipts that are read at the same time: each is one answer of the store away."""


@dataclass(frozen=True)
class Job:
    """One task, and where its result goes."""

    module: str
    function: str
    place: str
    """`TaskObjects.place`."""
    step: str
    number: int
    arguments: dict[str, Any]
    before: str
    """Digest of the steps before, whose files it may read."""

    @property
    def receipt(self) -> str:
        """The name of its receipt."""
        return f"{self.step}/{self.number:06d}.json"


@dataclass(frozen=True)
class Receipt:
    """What a task gave."""

    value: Any
    files: tuple[FileEntry, ...]
    name: str
    """What the names of its files begin with, in the task's objects."""


@dataclass(frozen=True)
class Made:
    """A task that is done, but whose files are not stored yet."""

    job: Job
    folder: Path
    name: str
    value: Any


def fingerprint(job: Job) -> str:
    """What decides a task's result: its arguments, but of files the SHA-256 alone and of absolute paths the last part
    (another attempt has them elsewhere), the steps before it (whose files it reads: with other memory they may be cut
    otherwise), and the code of its package and of the libraries under it.
    """
    return hashlib.sha256(
        json.dumps(
            [job.module, job.function, _placeless(job.arguments), job.before, _code(job.module)], sort_keys=True
        ).encode()
    ).hexdigest()


_ENTRY = frozenset(name for name, field in FileEntry.model_fields.items() if field.is_required())


def _placeless(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() >= _ENTRY:
            return value["sha256"]
        return {key: _placeless(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_placeless(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def plain(value: Any) -> Any:
    """An argument as JSON has it: entries of files become their values."""
    if isinstance(value, FileEntry):
        return value.value()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@functools.cache
def _code(module: str) -> str:
    """Digest of a module's package, and of the libraries that it stands on."""
    package = Path(str(importlib.import_module(module).__file__)).parent
    files = sorted(path for folder in libraries(package) for path in folder.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


_LIBRARY = re.compile(rb"^\s*(?:from|import)\s+stages\.lib\.(\w+)", re.MULTILINE)


def libraries(package: Path) -> set[Path]:
    """A package's folder, that of what data stages share, and those of all of `stages.lib` that they import, one
    through another; by their text, since what is loaded in a process depends on what it did before.
    """
    lib = Path(__file__).parents[1]
    folders, left = set[Path](), {package, Path(__file__).parent}
    while left:
        folders.add(folder := left.pop())
        for path in folder.rglob("*.py"):
            left |= {lib / name.decode() for name in _LIBRARY.findall(path.read_bytes())} - folders
    return folders


# --- receipts ---------------------------------------------------------------------------------------------------------


def receipt(job: Job, objects: TaskObjects | None = None) -> Receipt | None:
    """The result of a finished task; None when it is not done, was done for other arguments, or has lost or cut
    files.
    """
    objects = objects or objects_at(job.place)
    document = objects.get(job.receipt)
    return None if document is None else _read(document[0], job, objects)


def _read(data: bytes, job: Job, objects: TaskObjects) -> Receipt | None:
    try:
        document = parsed_json(data)
        if document["task"] != fingerprint(job):
            return None
        files = tuple(FileEntry.model_validate(row) for row in document["files"])
        return Receipt(document["value"], files, document["name"]) if all(map(objects.holds, files)) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def receipts(
    jobs: Iterable[Job], objects: TaskObjects, step: str, by_name: bool = False
) -> Iterator[tuple[int, Receipt]]:
    """(number, receipt) of the jobs of a step that are done: one listing, and as many reads as there are receipts.
    by_name: each is asked for, since a list may be late.
    """
    jobs_of = {job.receipt: job for job in jobs}
    present = list(jobs_of.values())
    if present and not by_name:
        present = [jobs_of[row.key] for row in objects.list(f"{step}/") if row.key in jobs_of]
    with ThreadPoolExecutor(READERS) as readers:
        for job, document in zip(present, readers.map(lambda job: receipt(job, objects), present), strict=True):
            if document is not None:
                yield job.number, document


# --- doing it ---------------------------------------------------------------------------------------------------------


def compute(job: Job) -> Made:
    """Do the work of a task, in a folder of its own. What it leaves when it fails is taken away."""
    objects = objects_at(job.place)
    if not os.environ.get(reading.STORE) and (address := store_of(job.place)):  # another machine than the stage's
        reading.share(address, job.place)
    token = f"{secrets.token_hex(4)}.{os.getpid()}"  # processes of two containers may have one number
    name = f"{job.step}.files/{job.number:06d}.{token}"
    folder = objects.folder(name)
    function = importlib.import_module(job.module)
    for part in job.function.split("."):
        function = getattr(function, part)
    try:
        value = function(folder, **job.arguments)  # type: ignore[operator]
    except BaseException:
        objects.drop(folder)
        raise
    return Made(job, folder, name, value)


def finish(done: Made) -> Receipt:
    """Store the files of a task and write its receipt; what counts: of two that did the same task, the first."""
    job, objects = done.job, objects_at(done.job.place)
    try:
        files = tuple(_with_detail(entry, done.folder) for entry in objects.upload(done.name, done.folder))
    finally:
        objects.drop(done.folder)
    result = Receipt(json.loads(json.dumps(done.value)), files, done.name)
    rows = [entry.value() for entry in files]
    body = json.dumps({"task": fingerprint(job), "value": result.value, "files": rows, "name": done.name}).encode()
    version: str | None = None
    while True:
        try:
            objects.put(job.receipt, body, if_absent=version is None, if_match=version)
            return result
        except Conflict:  # of an attempt that was taken for dead, or of other arguments
            document = objects.get(job.receipt)
        if document is not None and (theirs := _read(document[0], job, objects)) is not None:
            objects.delete(f"{done.name}/{entry.path}" for entry in files)
            return theirs
        version = document and document[1]


def execute(job: Job) -> Receipt:
    """Do one task."""
    return finish(compute(job))


def _with_detail(entry: FileEntry, folder: Path) -> FileEntry:
    if not entry.path.endswith(".parquet"):
        return entry
    return entry.model_copy(update={"detail": parquet_parts.detail(folder / entry.path)})
