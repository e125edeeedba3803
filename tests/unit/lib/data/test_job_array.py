"""`stages.lib.data.job_array`: what the stage asks for, and what it makes of the answers. A whole stage:
tests/integration/lib/data/test_job_array.py. A real cluster: tests/launch/test_slurm_arrays.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.core.errors import ConfigError, InfraError, InputError
from stages.core.task_objects import FolderObjects, answer_array, objects_at, state_of
from stages.lib.data import job_array
from stages.lib.data.task import ATTEMPTS, Job
from stages.lib.data.workers import Pool
from tests.support.array_cluster import Cluster
from tests.support.deduplication import dedup
from tests.support.pool_tasks import runs, tasks
from tests.support.worker_tasks import refuse, square, stumble


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_array, "SECONDS", 0.001)
    monkeypatch.setattr(job_array, "PATIENCE", 0.001)


def test_every_task_runs_once_and_a_second_time_for_nothing(tmp_path: Path) -> None:
    cluster, seen = Cluster(), []
    for _ in range(2):
        with Pool(tmp_path / "work", "slurm", cluster.ask) as pool:
            results = pool.map(
                "squares", square, tasks(tmp_path / "log"), lambda done, total, unit: seen.append((done, total))
            )
        assert [r.value for r in results] == [0, 1, 4, 9, 16]
    assert runs(tmp_path / "log") == [1] * 5
    assert cluster.asked == [5]
    assert seen == [(n, 5) for n in range(1, 6)]
    assert not [p for p in (tmp_path / "work" / "arrays").rglob("*") if p.is_file()]


def test_a_lost_element_costs_its_tasks(tmp_path: Path) -> None:
    """Element 1 of three has the tasks 1 and 4."""
    cluster = Cluster(lost=lambda array, element: (array, element) == (0, 1))
    results = Pool(tmp_path / "work", "slurm", cluster.ask).map("squares", square, tasks(tmp_path / "log"))
    assert [r.value for r in results] == [0, 1, 4, 9, 16]
    assert cluster.asked == [5, 2]
    assert runs(tmp_path / "log") == [1] * 5


def test_receipts_that_are_in_no_list_yet_are_found_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderObjects, "list", lambda self, prefix: iter(()))
    cluster = Cluster()
    results = Pool(tmp_path / "work", "slurm", cluster.ask).map("squares", square, tasks(tmp_path / "log"))
    assert [r.value for r in results] == [0, 1, 4, 9, 16]
    assert cluster.asked == [5]


def test_a_request_that_the_launcher_never_read_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its event was rotated away with the log, and the stage waited for ever."""
    monkeypatch.setattr(job_array, "ASK_SECONDS", 0.01)
    cluster, names = Cluster(), list[str]()

    def ask(place: str, name: str, parts: int) -> None:
        names.append(name)
        if len(names) == 3:
            cluster.ask(place, name, parts)

    results = Pool(tmp_path / "work", "slurm", ask).map("squares", square, tasks(tmp_path / "log"))
    assert [r.value for r in results] == [0, 1, 4, 9, 16]
    assert names[:3] == names[:1] * 3, "the same array"


def test_torn_results_and_old_errors_are_in_nobodys_way(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path / "work")
    objects.put("squares/000001.json", b"{")
    error = json.dumps({"exit": "input", "message": "of an earlier attempt"}).encode()
    objects.put(f"{state_of('squares-00000000')}error-000000.json", error)
    cluster = Cluster()
    assert [
        r.value for r in Pool(tmp_path / "work", "slurm", cluster.ask).map("squares", square, tasks(tmp_path / "log"))
    ] == [0, 1, 4, 9, 16]
    assert cluster.asked == [5]


def test_a_tasks_own_error_is_the_stages_and_is_not_tried_again(tmp_path: Path) -> None:
    cluster = Cluster()
    with pytest.raises(InputError, match=r"^shard 3 cannot be used$"):
        Pool(tmp_path / "work", "slurm", cluster.ask).map("squares", refuse, tasks(tmp_path / "log"))
    assert cluster.asked == [5]


@pytest.mark.parametrize(
    ("kind", "expected", "message"),
    [
        ("memory", MemoryError, "^no room$"),
        ("bug", job_array.TaskFailed, r"^KeyError: 'a key' \(worker_tasks\.py:\d+\)$"),
        ("config", ConfigError, "^cannot work$"),
    ],
)
def test_errors_keep_their_class(tmp_path: Path, kind: str, expected: type[Exception], message: str) -> None:
    with pytest.raises(expected, match=message):
        Pool(tmp_path / "work", "slurm", Cluster().ask).map("x", stumble, [{"kind": kind}, {"kind": kind}])


def test_tasks_that_are_lost_every_time_end(tmp_path: Path) -> None:
    cluster = Cluster(lost=lambda array, element: element == 0)
    with pytest.raises(
        InfraError,
        match=r"1 shards \(squares\) are left after 4 arrays: their jobs ended 1 NODE_FAIL; .*squares-",
    ):
        Pool(tmp_path / "work", "slurm", cluster.ask).map("squares", square, tasks(tmp_path / "log"))
    assert len(cluster.asked) == ATTEMPTS


def test_a_launcher_that_cannot_submit_is_quoted(tmp_path: Path) -> None:
    asked = []

    def ask(place: str, name: str, count: int) -> None:
        asked.append(count)
        answer_array(objects_at(place), name, {}, "sbatch: invalid partition")

    with pytest.raises(InfraError, match=r"5 shards .* after 4 arrays: sbatch: invalid partition;"):
        Pool(tmp_path / "work", "slurm", ask).map("squares", square, tasks(tmp_path / "log"))
    assert asked == [5] * ATTEMPTS


@pytest.mark.parametrize("parts", [4, 4096])
def test_elements_share_the_jobs_whatever_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.setattr(job_array, "PARTS", parts)
    objects = FolderObjects(tmp_path)
    jobs = [Job("m", "f", objects.place, "step", n, {"long": "x" * n}, "") for n in range(10)]
    assert job_array.write_jobs(objects, "step-1", jobs) == min(parts, 10)
    for elements in (1, 3, 4):
        found = [list(job_array.read_jobs(objects, "step-1", n, elements)) for n in range(elements)]
        assert sorted((job for part in found for job in part), key=lambda job: job.number) == jobs
    with pytest.raises(InfraError, match="another attempt has done them"):
        list(job_array.read_jobs(objects, "step-2", 0, 3))


def test_without_a_launcher_that_answers_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOXIN_ARRAYS", raising=False)
    with pytest.raises(ConfigError, match=r"test\.workers = 'slurm' needs the slurm launcher"):
        dedup(tmp_path, ["a text"], workers="slurm")
