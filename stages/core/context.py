"""What a stage's `run` is given: its configuration, its inputs on local disk, and everything that it may do."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.config import StageConfig

C_co = TypeVar("C_co", bound=StageConfig, covariant=True)


@dataclass(frozen=True)
class LocalArtifact:
    """An input. `folder`: where its files lie on local disk, None where the port is not read whole (`Stage.reads`).
    Treat it as read-only: its files are shared with other stages.
    """

    folder: Any  # pathlib.Path | None
    manifest: ArtifactManifest
    node: str

    @property
    def path(self) -> Any:
        """The folder (`pathlib.Path`). Raises TypeError where the port is not read whole."""
        if self.folder is None:
            raise TypeError(
                f"the output of {self.node} is not staged in: read its entries, or declare its port 'whole'"
            )
        return self.folder

    @property
    def facets(self) -> dict[str, str | int]:
        """The artifact's facets."""
        return self.manifest.facets

    @property
    def meta(self) -> dict[str, Any]:
        """The producer's statistics."""
        return self.manifest.meta

    def entries(self, suffix: str = "") -> list[FileEntry]:
        """The artifact's files in path order, optionally only those that end in `suffix`: for `stages.core.reading` and
        the arguments of tasks.
        """
        entries = [f for f in sorted(self.manifest.files, key=lambda f: f.path) if f.path.endswith(suffix)]
        if self.folder is None:
            return entries
        return [f.model_copy(update={"object": str((self.folder / f.path).absolute())}) for f in entries]

    def files(self, suffix: str = "") -> list[Any]:
        """Paths of the artifact's files in name order, optionally only those that end in `suffix`."""
        return [
            self.path / f.path for f in sorted(self.manifest.files, key=lambda f: f.path) if f.path.endswith(suffix)
        ]


class Checkpoints(typing.Protocol):
    """Mid-stage checkpoints of the key being worked on."""

    def save(self, step: int, directory: Any) -> None:
        """Publish the files under `directory` as the checkpoint of `step`. Atomic: torn uploads are invisible."""

    def upload(self, step: int, directory: Any) -> list[dict[str, Any]]:
        """Store the files under `directory` as this process's part of a checkpoint; nothing is visible yet. Returns
        what `commit` must be told. For a stage of several processes; file names must differ among them.
        """
        ...

    def commit(self, step: int, parts: Sequence[dict[str, Any]]) -> None:
        """Publish the checkpoint of `step` from what all processes uploaded. Called by the first process alone."""

    def latest(self) -> tuple[int, Any] | None:
        """Step and local folder of the newest complete checkpoint of this key, or None."""

    def newest(self) -> tuple[int, Sequence[FileEntry]] | None:
        """Step and files of the newest complete checkpoint, or None: `stages.core.reading` opens them, nothing is
        fetched. For a stage of several processes: its first one asks, and tells the others.
        """

    def retain(self, last: int, every: int, behind: int) -> None:
        """Which checkpoints are kept from here on (`stages.core.checkpoints.Retention`)."""

    def go_back(self, step: int) -> bool:
        """Make the checkpoints after `step` ones no more, so that `newest` is then one at or before it, with its rows.
        False: there is none, and the rows of all steps are gone. For the first process of several alone.
        """
        ...

    def set_aside(self, step: int, why: object) -> None:
        """Make a checkpoint one no more, because reading it has shown damage: `newest` is then the one before."""

    def note(self, **most: float) -> None:
        """Tell what one took. The most of each is kept with the result as its statistic `checkpoints`: `bytes` and
        `store_seconds`, `read_bytes` and `read_seconds` are this process's part; `disk_seconds` ends with its files on
        disk; in `pause_seconds` no step is taken; `load_seconds` follow a file that was fetched.
        """


class TaskObjects(typing.Protocol):
    """Where tasks leave their results (`stages.core.task_objects`): small documents by name, and the files of tasks."""

    @property
    def place(self) -> str:
        """JSON, without credentials, from which another process makes the same (`task_objects.objects_at`)."""
        ...

    def get(self, name: str) -> tuple[bytes, str] | None:
        """A document and its version, or None."""
        ...

    def put(self, name: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        """Write a document. Raises Conflict where there is one already, or another version than `if_match`."""

    def list(self, prefix: str) -> Iterator[Any]:
        """What lies under a prefix, in order: `stages.core.store.Stored`."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove documents and files."""

    def folder(self, name: str) -> Any:
        """A new local folder (`pathlib.Path`) for the files that are to be `name/...`."""
        ...

    def upload(self, name: str, folder: Any) -> tuple[FileEntry, ...]:
        """Store the files of such a folder; what they are, in the order of their paths."""
        ...

    def holds(self, entry: FileEntry) -> bool:
        """Whether a file is still there, as far as that costs nothing to see."""
        ...

    def drop(self, folder: Any) -> None:
        """Take a folder whose files are stored, or of no use, from the local disk."""

    def abandon(self, process: int) -> None:
        """Take from the local disk what a dead process of this machine was at, whose number ends its folders' names."""


class Context(typing.Protocol[C_co]):
    """Everything a stage may touch. The runtime implements it; tests use `stages.core.testing.LocalContext`."""

    @property
    def config(self) -> C_co:
        """The validated configuration."""
        ...

    @property
    def node(self) -> str:
        """Name of the node being run."""
        ...

    @property
    def scratch(self) -> Any:
        """A folder for temporary files (`pathlib.Path`), removed afterwards."""
        ...

    @property
    def tasks(self) -> TaskObjects:
        """Where tasks leave their results, for this attempt and for later ones."""
        ...

    @property
    def nproc_per_node(self) -> int:
        """Processes that an engine is to start here (`Resources.ranks`): one for each GPU of this node, or what was
        asked for without GPUs.
        """
        ...

    @property
    def checkpoints(self) -> Checkpoints:
        """Mid-stage checkpoints."""
        ...

    @property
    def stopping(self) -> bool:
        """True once the stage was asked to stop: save a checkpoint and raise `Preempted`."""
        ...

    @property
    def rehearses_stop(self) -> bool:
        """Whether it will be asked to stop once it has a checkpoint: no step follows one before that is published."""
        ...

    def input(self, port: str) -> LocalArtifact:
        """The artifact at a single input port. Raises KeyError when nothing is wired to it."""
        ...

    def inputs(self, port: str) -> list[LocalArtifact]:
        """The artifacts at an input port, in wiring order; empty for an optional port left open."""
        ...

    def output(self, port: str) -> Any:
        """The empty folder (`pathlib.Path`) to write an output's files into."""
        ...

    def link(self, port: str, path: str, entry: FileEntry) -> None:
        """Give a file that the store has already (a task left it) a path in an output: nothing is copied or read."""
        ...

    def describe(
        self, port: str, *, facets: Mapping[str, str | int] | None = None, meta: Mapping[str, Any] | None = None
    ) -> None:
        """State an output's facets (all that its type names) and statistics for people."""
        ...

    def remember(self, name: str, value: Any) -> None:
        """Keep a JSON value in the store under a name, which must say all that the value follows from: any attempt of
        any node may recall it.
        """
        ...

    def recall(self, name: str) -> Any:
        """What `remember` kept under this name; None: nothing."""
        ...

    def stat(self, **values: Any) -> None:
        """Add summary numbers (JSON values) to the manifest, for `moxin show` and the report."""
        ...

    def metric(self, step: int, **values: float) -> None:
        """One row of a time series (loss, learning rate, ...), streamed to the UI and kept with the result."""
        ...

    def progress(self, done: float, total: float | None = None, unit: str = "") -> None:
        """How far the stage is. Cheap: call it freely."""
        ...

    def log(self, message: str, level: Literal["debug", "info", "warning", "error"] = "info") -> None:
        """One line for people."""
        ...

    def array(self, place: str, name: str, tasks: int, cpus: float, memory_gib: float) -> None:
        """Ask the launcher for an array of at most so many elements, one needing so much: its jobs lie at a place
        (`TaskObjects.place`) under a name. `stages/lib/data/job_array.py` says how it answers.
        """
        ...
