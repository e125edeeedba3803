"""Where the tasks of a data stage leave what they make: objects of the store, or files of a folder where there is none.

    work/<stage>/<key>/<step>/<task>.json              a receipt: who reads it may use the files that it names
    work/<stage>/<key>/<step>.files/<task>.<token>/..  the files of one attempt at a task

Names are relative to `work/<stage>/<key>/`. `place` says in JSON where that is, without credentials: `objects_at` makes
the same of it in another process or on another machine.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from stages.core.artifacts import FileEntry
from stages.core.context import TaskObjects
from stages.core.files import replacing
from stages.core.messages import StoreAddress
from stages.core.store import Store, Stored, in_threads
from stages.core.store_errors import Conflict
from stages.core.uploads import file_sums
from stages.core.workspace import claim, scratch

ARRAYS = "arrays"
OVER = "over.json"


def work_prefix(stage: str, key: str) -> str:
    """What the names of all that tasks of a key leave begin with."""
    return f"work/{stage}/{key}/"


class FolderObjects:
    """As objects, the files of a folder: for stages that run without a store (`stages.core.testing`)."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @property
    def place(self) -> str:
        return json.dumps({"folder": str(self.root)})

    def get(self, name: str) -> tuple[bytes, str] | None:
        try:
            data = (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data, hashlib.sha256(data).hexdigest()

    def put(self, name: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if if_match is not None and ((document := self.get(name)) is None or document[1] != if_match):
            raise Conflict(str(path))
        with replacing(path) as partial:
            partial.write_bytes(data)
            if if_absent:  # a link does not replace
                try:
                    os.link(partial, path)
                except FileExistsError:
                    raise Conflict(str(path)) from None

    def list(self, prefix: str) -> Iterator[Stored]:
        folder = self.root / prefix.rpartition("/")[0]
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
            if (name := path.relative_to(self.root).as_posix()).startswith(prefix):
                yield Stored(name, path.stat().st_size, "")

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True)
        return path

    def upload(self, name: str, folder: Path) -> tuple[FileEntry, ...]:
        """The files lie where they are to lie."""
        return tuple(_described(path, path.relative_to(folder).as_posix()) for path in _files(folder))

    def holds(self, entry: FileEntry) -> bool:
        with contextlib.suppress(OSError):
            return Path(entry.object).stat().st_size == entry.size
        return False

    def drop(self, folder: Path) -> None:
        """Nothing: it is the result."""

    def abandon(self, process: int) -> None:
        """Nothing: what is no result cannot be told from what is."""


class StoreObjects:
    """Objects under a prefix of the store that ends in a slash. Files are made under `folder`, in one of this process's
    own where none is given, and leave this disk once they are stored.
    """

    def __init__(self, store: Store, prefix: str, folder: Path | None) -> None:
        self.store, self.prefix, self._given = store, prefix, folder

    @functools.cached_property
    def scratch(self) -> Path:
        """Where files are made."""
        return own_folder() if self._given is None else Path(self._given)

    @property
    def place(self) -> str:
        document = {"store": self.store.address.model_dump(mode="json", exclude_defaults=True), "prefix": self.prefix}
        given = {} if self._given is None else {"scratch": str(self._given)}
        return json.dumps(document | given, sort_keys=True)

    def get(self, name: str) -> tuple[bytes, str] | None:
        return self.store.get(self.prefix + name)

    def put(self, name: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        self.store.put(self.prefix + name, data, if_absent=if_absent, if_match=if_match)

    def list(self, prefix: str) -> Iterator[Stored]:
        for row in self.store.list(self.prefix + prefix):
            yield Stored(row.key[len(self.prefix) :], row.size, row.etag)

    def delete(self, names: Iterable[str]) -> None:
        self.store.delete(self.prefix + name for name in names)

    def folder(self, name: str) -> Path:
        path = self.scratch / name
        path.mkdir(parents=True)
        return path

    def upload(self, name: str, folder: Path) -> tuple[FileEntry, ...]:
        def one(path: Path) -> FileEntry:
            relative = path.relative_to(folder).as_posix()
            return self.store.put_file(f"{self.prefix}{name}/{relative}", path, relative)

        return tuple(in_threads(one, _files(folder), self.store.interrupted))

    def holds(self, entry: FileEntry) -> bool:
        """Taken on trust: a receipt goes before its files do, and whoever reads one verifies it."""
        return True

    def drop(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def abandon(self, process: int) -> None:
        for folder in self.scratch.glob(f"*.files/*.{process}"):
            self.drop(folder)


def _described(path: Path, name: str) -> FileEntry:
    sums = file_sums(path)
    size, place = path.stat().st_size, str(path.absolute())
    return FileEntry(path=name, size=size, sha256=sums.sha256, object=place, blocks=sums.blocks)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def store_of(place: str) -> StoreAddress | None:
    """The store at a `place`; None: it is a folder."""
    document = json.loads(place)
    return StoreAddress.model_validate(document["store"]) if "store" in document else None


def elsewhere(place: str) -> str:
    """The same place for processes that the stage does not start itself: they have no part in its scratch folder, which
    may be of another machine, or go while they are at work.
    """
    return json.dumps({name: value for name, value in json.loads(place).items() if name != "scratch"}, sort_keys=True)


@functools.lru_cache(maxsize=16)
def objects_at(place: str) -> TaskObjects:
    """The objects at a `place`."""
    document = json.loads(place)
    if "folder" in document:
        return FolderObjects(Path(document["folder"]))
    given = document.get("scratch")
    return StoreObjects(
        Store(StoreAddress.model_validate(document["store"])), document["prefix"], given and Path(given)
    )


@functools.cache
def own_folder() -> Path:
    """A folder of this process under the scratch folder of its machine."""
    scratch().mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="stage-", dir=scratch()))
    atexit.register(claim(folder).close)  # open until then: a folder of a killed process is swept up
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# --- arrays of jobs (stages/lib/data/job_array.py): what the launcher says ---------------------------------------


def state_of(array: str) -> str:
    """What the names of an array's answer, and of its jobs' errors, begin with."""
    return f"{ARRAYS}/{array}.state/"


def first_part(array: str) -> str:
    """The name of the first document of an array's jobs: without it, nobody wants the array any more."""
    return f"{ARRAYS}/{array}/000000.json"


def answer_array(objects: TaskObjects, array: str, states: Mapping[str, int], error: str = "") -> None:
    """Tell the stage that no element of an array is left. states: how many ended how; error: why there is no array."""
    document = {"states": dict(sorted(states.items()))} | ({"error": error} if error else {})
    objects.put(f"{state_of(array)}{OVER}", json.dumps(document).encode())
