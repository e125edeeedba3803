"""Run a stage in a unit test without a store: `LocalContext` implements `Context` on local folders.

ctx = LocalContext(tmp_path, TokenizeConfig(sequence_length=64), inputs={"documents": [(Documents, folder, {})]})
run(ctx)
ctx.facets["shards"], ctx.metrics, ctx.stats
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from stages.core.artifacts import Artifact, ArtifactManifest, FileEntry
from stages.core.config import StageConfig
from stages.core.context import LocalArtifact
from stages.core.staging import link_or_copy
from stages.core.task_objects import FolderObjects

C = TypeVar("C", bound=StageConfig)


def local_artifact(
    type: type[Artifact],
    folder: Path,
    facets: Mapping[str, str | int] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> LocalArtifact:
    """Describe the files of `folder` as an input artifact."""
    files = tuple(local_files(folder))
    digest = hashlib.sha256(repr([(f.path, f.sha256) for f in files]).encode()).hexdigest()
    manifest = ArtifactManifest(
        type=type.__name__, digest=digest, facets=dict(facets or {}), meta=dict(meta or {}), files=files
    )
    return LocalArtifact(folder, manifest, "test")


def local_files(folder: Path) -> list[FileEntry]:
    """The files below a folder, in path order, as stored files that lie on this disk."""
    return [
        FileEntry(
            path=p.relative_to(folder).as_posix(),
            size=p.stat().st_size,
            sha256=hashlib.sha256(p.read_bytes()).hexdigest(),
            object=str(p.absolute()),
        )
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    ]


class LocalCheckpoints:
    """Checkpoints kept in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.most: dict[str, float] = {}

    def save(self, step: int, directory: Path) -> None:
        self.commit(step, self.upload(step, directory))

    def upload(self, step: int, directory: Path) -> list[dict[str, Any]]:
        target = self.root / f".{step:08d}"
        shutil.copytree(directory, target, dirs_exist_ok=True)
        return [{"path": p.name} for p in Path(directory).iterdir()]

    def commit(self, step: int, parts: Sequence[dict[str, Any]]) -> None:
        source, target = self.root / f".{step:08d}", self.root / f"{step:08d}"
        assert {part["path"] for part in parts} == {p.name for p in source.iterdir()}
        shutil.rmtree(target, ignore_errors=True)
        source.rename(target)

    def latest(self) -> tuple[int, Path] | None:
        folders = sorted(self.root.glob("[0-9]*")) if self.root.exists() else []
        return (int(folders[-1].name), folders[-1]) if folders else None

    def newest(self) -> tuple[int, list[FileEntry]] | None:
        newest = self.latest()
        return None if newest is None else (newest[0], local_files(newest[1]))

    def note(self, **most: float) -> None:
        self.most |= {name: max(value, self.most.get(name, 0.0)) for name, value in most.items()}

    def retain(self, last: int, every: int, behind: int) -> None:
        """All are kept."""

    def go_back(self, step: int) -> bool:
        steps = [int(folder.name) for folder in self.root.glob("[0-9]*")]
        for other in steps:
            if other > step:
                shutil.rmtree(self.root / f"{other:08d}")
        return any(other <= step for other in steps)

    def set_aside(self, step: int, why: object) -> None:
        (self.root / f"{step:08d}").rename(self.root / f"damaged-{step:08d}")


class LocalContext(Generic[C]):
    """A `Context` on local folders. `stop_after` makes `stopping` true once that many metric rows were written."""

    def __init__(
        self,
        root: Path,
        config: C,
        inputs: Mapping[str, Sequence[LocalArtifact]] | None = None,
        node: str = "test",
        stop_after: int | None = None,
        nproc_per_node: int = 1,
    ) -> None:
        self.root, self.config, self.node, self._stop_after = root, config, node, stop_after
        self.rehearses_stop = False
        self.nproc_per_node = nproc_per_node
        self._inputs = {port: list(many) for port, many in (inputs or {}).items()}
        self.scratch = root / "scratch"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.tasks = FolderObjects(root / "tasks")
        self.checkpoints = LocalCheckpoints(root / "checkpoints")
        self.facets: dict[str, dict[str, str | int]] = {}
        self.meta: dict[str, dict[str, Any]] = {}
        self.stats: dict[str, Any] = {}
        self.metrics: list[dict[str, float]] = []
        self.logs: list[str] = []
        self.memory: dict[str, Any] = {}
        self.arrays: list[tuple[str, str, int, float, float]] = []

    @property
    def stopping(self) -> bool:
        return self._stop_after is not None and len(self.metrics) >= self._stop_after

    def input(self, port: str) -> LocalArtifact:
        return self._inputs[port][0]

    def inputs(self, port: str) -> list[LocalArtifact]:
        return self._inputs.get(port, [])

    def output(self, port: str) -> Path:
        folder = self.root / "out" / port
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def link(self, port: str, path: str, entry: FileEntry) -> None:
        place = self.output(port) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(Path(entry.object), place)

    def describe(
        self, port: str, *, facets: Mapping[str, str | int] | None = None, meta: Mapping[str, Any] | None = None
    ) -> None:
        self.facets.setdefault(port, {}).update(facets or {})
        self.meta.setdefault(port, {}).update(meta or {})

    def remember(self, name: str, value: Any) -> None:
        self.memory[name] = json.loads(json.dumps(value))

    def recall(self, name: str) -> Any:
        return self.memory.get(name)

    def stat(self, **values: Any) -> None:
        self.stats.update(values)

    def metric(self, step: int, **values: float) -> None:
        self.metrics.append({"step": step, **values})

    def progress(self, done: float, total: float | None = None, unit: str = "") -> None:
        pass

    def log(self, message: str, level: str = "info") -> None:
        self.logs.append(f"{level}: {message}")

    def array(self, place: str, name: str, tasks: int, cpus: float, memory_gib: float) -> None:
        self.arrays.append((place, name, tasks, cpus, memory_gib))
