"""An `EvalSuite` on disk: a mirror of evaluation data sets in the hub's own schemas, and the listing `suite.json`.

    <organisation>/<name>/README.md                   the configurations, as `datasets.load_dataset(<folder>, <config>)` reads them
    <organisation>/<name>/<config>/<split>.parquet
    suite.json                                        what is in it, and where it came from
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.contracts import InputError

LISTING = "suite.json"


class DataSet(BaseModel):
    """One data set of a suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="the hub's name of it, owner/name")
    origin: Literal["hub", "machine"] = Field(description="'machine': made from this run's own documents, not the benchmark")
    revision: str | None = Field(default=None, description="commit on the hub")
    license: str = ""
    rows: dict[str, dict[str, int]] = Field(description="{configuration: {split: rows}}")


class Suite(BaseModel):
    """The listing of a suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_sets: tuple[DataSet, ...]
    train_test_overlap: int = Field(description="training rows that share a 13-gram with a test row, after filtering: 0")

    def find(self, id: str) -> DataSet | None:
        """The data set of that name."""
        return next((d for d in self.data_sets if d.id == id), None)


def write_data_set(folder: Path, id: str, configs: Mapping[str, Mapping[str, pa.Table]]) -> dict[str, dict[str, int]]:
    """Write one data set: configs is {configuration: {split: table}}; returns the row counts in the same shape."""
    root = folder / id
    front = []
    for config, splits in configs.items():
        (root / config).mkdir(parents=True, exist_ok=True)
        for split, table in splits.items():
            pq.write_table(table, root / config / f"{split}.parquet", compression="zstd")
        files = [{"split": split, "path": f"{config}/{split}.parquet"} for split in splits]
        front.append({"config_name": config, "data_files": files} | ({"default": True} if config == "default" else {}))
    text = yaml.safe_dump({"configs": front}, sort_keys=False)
    (root / "README.md").write_text(f"---\n{text}---\n\nA mirror of `{id}` in its own schema.\n", encoding="utf-8")
    return {config: {split: table.num_rows for split, table in splits.items()} for config, splits in configs.items()}


def write_suite(folder: Path, suite: Suite) -> None:
    """Write the listing."""
    (folder / LISTING).write_text(suite.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_suite(folder: Path) -> Suite:
    """Read the listing. Raises InputError when there is none or it is damaged."""
    try:
        return Suite.model_validate_json((folder / LISTING).read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{LISTING} of the evaluation suite cannot be read: {str(error).splitlines()[0]}") from error
