"""An `EvalSuite` on disk: a mirror of evaluation data sets in the hub's own schemas, and the listing `suite.json`.

| file | what |
| --- | --- |
| `<owner>/<name>/README.md` | the configurations, as `datasets.load_dataset(<folder>, <config>)` reads them |
| `<owner>/<name>/<config>/<split>.parquet` | the rows |
| `suite.json` | what is in it, where it came from, and the fingerprint of every split |
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.errors import InputError
from stages.core.files import inside, is_inside

LISTING = "suite.json"
Origin = Literal["hub", "folder", "store", "package", "machine"]


class DataSet(BaseModel):
    """One data set of a suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="the hub's name of it, owner/name")
    origin: Origin = Field(
        description="where it was mirrored from; 'machine': made in its schema by a stage, not the benchmark"
    )
    revision: str | None = Field(default=None, description="commit on the hub; of a package, its version")
    license: str = ""
    rows: dict[str, dict[str, int]] = Field(description="{configuration: {split: rows}}")
    fingerprint: dict[str, dict[str, str]] = Field(
        default={}, description="{configuration: {split: SHA-256 of its rows}} (`split_fingerprint`)"
    )

    @property
    def sha256(self) -> str:
        """One SHA-256 over the names and fingerprints of all its splits."""
        return data_set_sha256(self.fingerprint)

    def config_name(self, asked: str | None) -> str | None:
        """The configuration that `datasets.load_dataset(<folder>, asked)` reads; None where there is no such one.

        Without a name that is 'default', or the only one that there is (openai/openai_humaneval).
        """
        if asked is None:
            asked = "default" if "default" in self.rows or len(self.rows) != 1 else next(iter(self.rows))
        return asked if asked in self.rows else None


class Suite(BaseModel):
    """The listing of a suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_sets: tuple[DataSet, ...]
    train_test_overlap: int | None = Field(
        default=None,
        description="training rows that share a 13-gram with a test row, after filtering: 0; None: none are made",
    )

    def find(self, id: str) -> DataSet | None:
        """The data set of that name."""
        return next((d for d in self.data_sets if d.id == id), None)


def write_data_set(folder: Path, id: str, configs: Mapping[str, Mapping[str, pa.Table]]) -> dict[str, dict[str, int]]:
    """Write one data set: configs is {configuration: {split: table}}; returns the row counts in the same shape."""
    root = inside(folder, id)
    root.mkdir(parents=True, exist_ok=True)
    front = []
    for config, splits in configs.items():
        for split, table in splits.items():  # the hub's names: whoever owns the data set chose them
            path = inside(root, f"{config}/{split}.parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path, compression="zstd")
        files = [{"split": split, "path": f"{config}/{split}.parquet"} for split in splits]
        front.append({"config_name": config, "data_files": files} | ({"default": True} if config == "default" else {}))
    text = yaml.safe_dump({"configs": front}, sort_keys=False)
    (root / "README.md").write_text(f"---\n{text}---\n\nA mirror of `{id}` in its own schema.\n", encoding="utf-8")
    return {config: {split: table.num_rows for split, table in splits.items()} for config, splits in configs.items()}


def split_fingerprint(rows: pa.Table | Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of a split: one line of JSON a row, keys in order, so neither the file format nor its writer matters."""
    digest = hashlib.sha256()
    table: Any = rows if isinstance(rows, pa.Table) else None
    for batch in [rows] if table is None else (batch.to_pylist() for batch in table.to_batches(1024)):
        for row in batch:
            line = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
            digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """What JSON has no form for: bytes as base64, times and decimals as their text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def split_fingerprints(configs: Mapping[str, Mapping[str, pa.Table]]) -> dict[str, dict[str, str]]:
    """{configuration: {split: SHA-256}} of {configuration: {split: table}}."""
    return {
        config: {split: split_fingerprint(table) for split, table in splits.items()}
        for config, splits in configs.items()
    }


def data_set_sha256(fingerprint: Mapping[str, Mapping[str, str]]) -> str:
    """One SHA-256 over the names and fingerprints of all splits of a data set, whatever their order."""
    lines = sorted(
        f"{config}/{split} {sha}\n" for config, splits in fingerprint.items() for split, sha in splits.items()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_suite(folder: Path, suite: Suite) -> None:
    """Write the listing."""
    (folder / LISTING).write_text(suite.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_suite(folder: Path) -> Suite:
    """Read the listing. Raises InputError when there is none or it is damaged."""
    try:
        suite = Suite.model_validate_json((folder / LISTING).read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{LISTING} of the evaluation suite cannot be read: {str(error).splitlines()[0]}") from error
    if odd := [data_set.id for data_set in suite.data_sets if not is_inside(data_set.id)]:
        raise InputError(f"{LISTING} of the evaluation suite names a folder outside of it: {odd[0]!r}")
    return suite
