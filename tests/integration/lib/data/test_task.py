"""Tasks whose results are objects: taken up by another machine, gone from this one; a real store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from stages.core import reading
from stages.core.artifacts import FileEntry
from stages.core.errors import InputError
from stages.core.files import ROOT
from stages.core.ledger import Ledger
from stages.core.task_objects import FolderObjects, StoreObjects, elsewhere, objects_at
from stages.lib.data import job_array
from stages.lib.data.task import Job, compute, execute, fingerprint, finish, libraries, receipt
from stages.lib.data.workers import Pool, Workers
from tests.support.array_cluster import Cluster
from tests.support.pool_tasks import runs, tasks
from tests.support.worker_tasks import die_once, refuse, rewrite, square, table


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_array, "SECONDS", 0.01)


def machine(ledger: Ledger, folder: Path) -> StoreObjects:
    """The tasks' objects as an attempt with a disk of its own has them."""
    folder.mkdir(parents=True, exist_ok=True)
    return StoreObjects(ledger.store, "work/dedup/key/", folder)


@pytest.fixture(autouse=True)
def address(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path / "scratch"))
    for name in (reading.STORE, reading.ATTEMPT):
        monkeypatch.setenv(name, "")
    reading.share(ledger.store.address, "test")


def text(entry: FileEntry) -> str:
    with reading.open_file(entry) as stream:
        return stream.read().decode()


@pytest.mark.parametrize("workers", [1, 2, "slurm"])
def test_results_are_objects_that_another_machine_takes_up(ledger: Ledger, tmp_path: Path, workers: Workers) -> None:
    """With two workers, one is killed at its first shard."""
    log, cluster = tmp_path / "log", Cluster(2, lost=lambda array, element: (array, element) == (0, 1))
    digests = []
    for number in ("one", "two"):
        with Pool(machine(ledger, tmp_path / number), workers, cluster.ask) as pool:
            first = pool.map("squares", die_once if workers == 2 else square, tasks(log))
            second = pool.map("again", rewrite, [{"file": result.file("value")} for result in first])
        assert [r.value for r in first] == [0, 1, 4, 9, 16]
        assert [text(r.file("value")) for r in first] == ["0", "1", "4", "9", "16"]
        assert [text(r.file("copy/value")) for r in second] == ["0", "1", "4", "9", "16"]
        assert not [p for p in (tmp_path / number).rglob("*") if p.is_file()], "the disk is free again"
        digests.append([r.file("copy/value").sha256 for r in second])
    assert (log / "died").exists() == (workers == 2)
    assert sum(runs(log)) <= (7 if workers == 2 else 5), "at most what the dead worker had in its hands is lost"
    assert digests[0] == digests[1]
    assert not list(ledger.store.list("work/dedup/key/arrays")), "what was for the arrays alone goes"
    with pytest.raises(KeyError, match="the task left no file pairs, but value"):
        first[0].file("pairs")


def test_a_tasks_own_error_is_the_stages_and_what_was_done_stays(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shard 3 cannot be used"), Pool(machine(ledger, tmp_path)) as pool:
        pool.map("squares", refuse, tasks(tmp_path / "log"))
    assert len(list(ledger.store.list("work/dedup/key/squares/"))) >= 1


def test_two_attempts_end_with_one_receipt_and_no_torn_result(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    places = [machine(ledger, tmp_path / name).place for name in ("one", "two")]
    arguments = {"number": 3, "log": str(tmp_path / "log")}
    made = [compute(Job(square.__module__, "square", place, "squares", 0, arguments, "")) for place in places]
    found = []
    threads = [threading.Thread(target=lambda one=one: found.append(finish(one))) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == receipt(made[0].job)
    assert {row.key for row in ledger.store.list("work/dedup/key/squares")} == {
        found[0].files[0].object,
        "work/dedup/key/squares/000000.json",
    }, "the files of the one that counts, and its receipt"
    other = replace(made[0].job, arguments=arguments | {"number": 4})
    assert text(execute(other).files[0]) == "16", "of other arguments: the receipt is replaced"
    assert receipt(made[0].job) is None


def test_files_count_by_their_bytes_wherever_they_lie(ledger: Ledger, tmp_path: Path) -> None:
    entry = FileEntry(path="a", size=1, sha256="0" * 64, object="work/x")
    job = Job("stages.dedup.lsh", "sign", machine(ledger, tmp_path).place, "sign", 0, {"file": [entry.value()]}, "")
    moved = entry.model_copy(update={"object": "objects/y", "path": "b", "detail": "{}"})
    assert fingerprint(job) == fingerprint(replace(job, arguments={"file": [moved.value()]}))
    changed = entry.model_copy(update={"sha256": "1" * 64})
    assert fingerprint(job) != fingerprint(replace(job, arguments={"file": [changed.value()]}))


@pytest.mark.parametrize("where", ["store", "folder"])
def test_entries_say_what_a_reader_needs(ledger: Ledger, tmp_path: Path, where: str) -> None:
    """Checksums of blocks of 16 MiB, and Parquet's row groups."""
    objects = machine(ledger, tmp_path / "disk") if where == "store" else FolderObjects(tmp_path / "disk")
    arguments = {"rows": 30, "group": 20, "size": (16 << 20) + 1}
    large, part = execute(Job(table.__module__, "table", objects.place, "step", 0, arguments, "")).files
    assert (large.path, large.detail) == ("large", "")
    assert large.blocks == f"{zlib.crc32(bytes(16 << 20)):08x}{zlib.crc32(bytes(1)):08x}"
    groups = json.loads(part.detail)["groups"]
    assert [rows for rows, _ in groups] == [20, 10]
    assert all(size > 0 for _, size in groups)
    assert large.is_local == (where == "folder")


def test_a_place_is_the_same_in_another_process_and_no_secret(ledger: Ledger, tmp_path: Path) -> None:
    objects = machine(ledger, tmp_path / "disk")
    objects.put("a/b.json", b"1")
    place = objects.place
    assert not any(value in place for name, value in os.environ.items() if name.startswith("AWS_") and len(value) > 8)
    for there, shares_the_disk in ((objects_at(place), True), (objects_at(elsewhere(place)), False)):
        assert there.get("a/b.json") == objects.get("a/b.json")
        folder = there.folder("x")
        assert folder.is_dir()
        assert folder.is_relative_to(tmp_path / "disk") == shares_the_disk
        there.drop(folder)
        assert not folder.exists()


@pytest.mark.parametrize("stage", ["image_data", "ingest", "tokenize"])
def test_the_code_of_a_task_is_all_that_its_package_stands_on(stage: str) -> None:
    """By Python's own account: the libraries that are loaded in a process that has loaded the package alone."""
    program = (
        f"import sys, importlib, pathlib, stages\nfolder = pathlib.Path(stages.__file__).parent / {stage!r}\n"
        f"for path in folder.glob('*.py'): importlib.import_module(f'stages.{stage}.{{path.stem}}')\n"
        "print(*{name.split('.')[2] for name in sys.modules if name.startswith('stages.lib.')})"
    )
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {path.name for path in libraries(ROOT / "stages" / stage)} >= {stage, *loaded.stdout.split()}
    assert "training" not in {path.name for path in libraries(ROOT / "stages" / stage)}
