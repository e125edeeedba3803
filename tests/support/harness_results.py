"""Recorded results of other harnesses, in a folder of their own that a test may spoil."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.lib.evaluation.harnesses.outcomes import write_version
from stages.lib.evaluation.suite_file import Suite
from tests.support.paths import DATA


def recorded(folder: Path, harness: str, version: str) -> Path:
    """A copy of the recorded results, with the version that the stage would write beside them."""
    out = folder / harness
    shutil.copytree(DATA / "harnesses" / harness, out)
    write_version(out, harness, version)
    return out


def suite(harness: str, version: str, *tasks: Mapping[str, Any]) -> Suite:
    """A suite of one harness."""
    return Suite.model_validate({"name": "mine", "harness": harness, "harness_version": version, "tasks": tasks})


def cut(path: Path) -> Path:
    """Leave five eighths of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 5 // 8])
    return path
