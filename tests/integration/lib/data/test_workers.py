"""`stages.lib.data.workers`: the same results from one process or several, from one go or after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stages.core.errors import ConfigError, InfraError, InputError
from stages.core.task_objects import FolderObjects
from stages.lib.data import process_pool
from stages.lib.data.task import Job, Made, Receipt, execute, finish, receipt
from stages.lib.data.workers import Pool
from tests.support.deduplication import dedup
from tests.support.limits import HANG
from tests.support.paths import ROOT
from tests.support.pool_tasks import corpus, parts, runs, tasks
from tests.support.worker_tasks import always_die, die_once, refuse, refuse_while_others_store, square


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_a_second_time_for_nothing(tmp_path: Path, workers: int) -> None:
    log, seen = tmp_path / "log", []
    for _ in range(2):
        with Pool(tmp_path / "work", workers) as pool:
            results = pool.map("squares", square, tasks(log), lambda done, total, unit: seen.append((done, total)))
        assert [r.value for r in results] == [0, 1, 4, 9, 16]
        assert [Path(r.file("value").object).read_text() for r in results] == ["0", "1", "4", "9", "16"]
    assert runs(log) == [1] * 5
    assert seen == [(n, 5) for n in range(1, 6)]


def test_other_arguments_and_torn_results_are_done_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    Pool(tmp_path / "work").map("squares", square, tasks(log))
    (tmp_path / "work" / "squares" / "000001.json").write_text("{")
    (tmp_path / "work" / "squares" / "000002.json").unlink()
    changed = [{**task, "number": 7 if task["number"] == 4 else task["number"]} for task in tasks(log)]
    assert [r.value for r in Pool(tmp_path / "work").map("squares", square, changed)] == [0, 1, 4, 9, 49]
    assert runs(log) == [1, 2, 2, 1, 1]


@pytest.mark.parametrize("how", ["empty", "a list", "no value", "lost file", "cut file"])
def test_a_damaged_receipt_or_result_is_done_again(tmp_path: Path, how: str) -> None:
    log = tmp_path / "log"
    first = Pool(tmp_path / "work").map("squares", square, tasks(log))
    file = Path(first[1].file("value").object)
    if how.endswith("file"):
        file.unlink() if how == "lost file" else file.write_bytes(file.read_bytes()[:-1])
    else:
        receipt = tmp_path / "work" / "squares" / "000001.json"
        receipt.write_text({"empty": "", "a list": "[1]", "no value": '{"task": "x"}'}[how])
    assert [r.value for r in Pool(tmp_path / "work").map("squares", square, tasks(log))] == [r.value for r in first]
    assert runs(log) == [1, 2, 1, 1, 1]


def test_the_same_inputs_elsewhere_are_the_same_work(tmp_path: Path) -> None:
    """Another attempt has its inputs in another folder; their last name is what counts."""
    for attempt in ("one", "two"):
        (tmp_path / attempt / "log").mkdir(parents=True)
        Pool(tmp_path / "work").map("squares", square, tasks(tmp_path / attempt / "log"))
    assert not list((tmp_path / "two" / "log").iterdir())


def test_what_follows_a_changed_step_is_done_again(tmp_path: Path) -> None:
    """Its arguments are the same, but the files that it reads were cut otherwise."""
    log = tmp_path / "log"
    for first in (2, 3, 3):
        with Pool(tmp_path / "work") as pool:
            pool.map("first", square, tasks(log, first))
            pool.map("second", square, tasks(log)[4:])
    assert (log / "4").read_text() == "xx"


def test_a_lost_worker_costs_its_shard(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Pool(tmp_path / "work", 2) as pool:
        results = pool.map("squares", die_once, tasks(log))
    assert [r.value for r in results] == [0, 1, 4, 9, 16]
    assert (log / "died").exists()
    assert max(runs(log)) <= 2, "at most the other worker's task was lost with it"
    assert all((tmp_path / "work" / "squares" / f"{n:06d}.json").exists() for n in range(5))


def test_a_task_that_kills_every_worker_ends(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="workers died 4 times"):
        Pool(tmp_path / "work", 2).map("squares", always_die, tasks(tmp_path / "log", 2))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tasks_own_error_is_the_stages(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InputError, match="shard 3 cannot be used"):
        Pool(tmp_path / "work", workers).map("squares", refuse, tasks(tmp_path / "log"))


def test_what_was_done_before_a_task_failed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what had not begun to be stored."""

    def slowly(made: Made) -> Receipt:
        time.sleep(0.3)
        return finish(made)

    monkeypatch.setattr(process_pool, "finish", slowly)
    log = tmp_path / "log"
    with pytest.raises(InputError):
        Pool(tmp_path / "work").map("squares", refuse, tasks(log))
    receipts = [path.name for path in sorted((tmp_path / "work" / "squares").glob("*.json"))]
    assert receipts == ["000000.json", "000001.json", "000002.json"]


def test_what_other_workers_have_done_is_kept_where_a_task_fails(tmp_path: Path) -> None:
    """They were killed while they stored it."""
    log = tmp_path / "log"
    with pytest.raises(InputError), Pool(tmp_path / "work", 2) as pool:
        pool.map("squares", refuse_while_others_store, tasks(log))
    receipts = {path.name for path in (tmp_path / "work" / "squares").glob("*.json")}
    assert receipts >= {"000000.json", "000001.json"}


def test_who_was_taken_for_dead_does_no_harm(tmp_path: Path) -> None:
    """A task that another one finished meanwhile keeps that result: it never is away, not even for a moment."""
    log = tmp_path / "log"
    log.mkdir()
    place = FolderObjects(tmp_path / "work").place
    job = Job(square.__module__, "square", place, "squares", 0, {"number": 3, "log": str(log)}, "")
    first = execute(job)
    inode = (tmp_path / "work" / "squares" / "000000.json").stat().st_ino
    assert execute(job) == first
    assert (tmp_path / "work" / "squares" / "000000.json").stat().st_ino == inode
    assert [p.name for p in (tmp_path / "work").glob("squares.files/*/*")] == ["value"]
    other = execute(replace(job, arguments={"number": 4, "log": str(log)}))
    assert Path(other.files[0].object).read_text() == "16"
    assert receipt(job) is None, "it is of other arguments now"


def test_ray_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs the package ray"):
        Pool(tmp_path / "work", "ray").map("squares", square, tasks(tmp_path / "log"))


# --- a whole stage ----------------------------------------------------------------------------------------------------


def test_an_attempt_with_other_memory_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions and ranges are cut otherwise: only what does not depend on them is taken over."""
    from stages.dedup import duplicates as stage

    work = tmp_path / "work"
    monkeypatch.setattr(stage, "RECORD_BYTES", 1 << 22)
    many = dedup(tmp_path / "many", *corpus(), tasks=work)
    assert len(list(work.glob("merge/*.json"))) > 1
    assert len(list(work.glob("pair/*.json"))) > 1
    monkeypatch.setattr(stage, "RECORD_BYTES", 32)
    few = dedup(tmp_path / "few", *corpus(), tasks=work)
    assert parts(tmp_path / "many") == parts(tmp_path / "few")
    assert many.stats["funnel"] == few.stats["funnel"]


@pytest.mark.parametrize("recipe", ["dclm", "the-stack"])
def test_dedup_is_the_same_with_two_workers_and_little_memory(tmp_path: Path, recipe: str) -> None:
    one = dedup(tmp_path / "one", *corpus(), recipe=recipe)
    two = dedup(tmp_path / "two", *corpus(), recipe=recipe, workers=2, memory_mib=64)
    assert parts(tmp_path / "one") == parts(tmp_path / "two")
    assert len(parts(tmp_path / "one")) == 4
    assert one.stats == two.stats
    assert one.config.identity() == two.config.identity()


def test_dedup_goes_on_after_a_kill(tmp_path: Path) -> None:
    """The stage is killed once it has signed two of four shards; the next attempt signs the other two, with equal
    bytes.
    """
    script = (
        "import sys, pathlib; from tests.support.pool_tasks import corpus\nfrom tests.support.deduplication import "
        "dedup\n"
        "dedup(pathlib.Path(sys.argv[1]), *corpus(), recipe='dclm', tasks=pathlib.Path(sys.argv[2]))"
    )
    work = tmp_path / "work"
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), str(work)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    deadline = time.monotonic() + HANG
    while not list(work.glob("sign/000001.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in work.glob("*/*.json")}
    assert len(done) >= 2
    dedup(tmp_path / "resumed", *corpus(), recipe="dclm", tasks=work)
    assert all(path.stat().st_mtime_ns == when for path, when in done.items()), "a finished shard was done again"
    dedup(tmp_path / "whole", *corpus(), recipe="dclm")
    assert parts(tmp_path / "resumed") == parts(tmp_path / "whole")
