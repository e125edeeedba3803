"""`moxin repair`: what is found, that a dry run changes nothing, and that what is mended works again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from flows import repair
from flows.cli import repairing
from flows.plan import State, make_plan
from flows.settings import Settings
from stages.core.checkpoints import NEWEST
from stages.core.ledger import Ledger
from stages.core.records import AttemptRecord
from tests.support.bench import PIPE, Bench
from tests.support.checkpoints import save_checkpoint
from tests.support.probe_pipeline import copy_ledger, profile_of, run_nodes


@pytest.fixture
def bench(finished_run: Ledger, ledger: Ledger, tmp_path: Path) -> Bench:
    """Everything has run once."""
    copy_ledger(finished_run, ledger)
    return Bench(ledger, tmp_path)


def snapshot(ledger: Ledger) -> dict[str, str]:
    return {row.key: row.etag for row in ledger.store.list("")}


def states(bench: Bench) -> set[State]:
    return {p.state for p in make_plan(PIPE, profile_of(PIPE, bench.folder), bench.ledger)}


def cut(ledger: Ledger, key: str) -> bytes:
    found = ledger.store.get(key)
    assert found is not None
    ledger.store.put(key, found[0][: len(found[0]) // 2])
    return found[0][: len(found[0]) // 2]


def test_a_sound_ledger_has_nothing_to_mend(bench: Bench) -> None:
    assert repair.examine(bench.ledger, deep=True) == []


@pytest.mark.parametrize(
    "name",
    [
        "manifests/{key}.json",
        "leases/{key}.json",
        "nodes/test/shards.json",
        "attempts/{key}/000001.json",
    ],
)
def test_a_record_that_is_cut_is_found_and_moved_aside(bench: Bench, name: str) -> None:
    ledger = bench.ledger
    name = name.format(key=bench.results()["shards"].key)
    body = cut(ledger, name)
    before = snapshot(ledger)
    (finding,) = repair.examine(ledger)
    assert finding.object == name
    assert snapshot(ledger) == before, "examining changes nothing"
    assert repair.apply([finding]) == [finding]
    (kept,) = ledger.store.list(f"damaged/{name}")
    assert (ledger.store.get(kept.key) or (b"",))[0] == body
    assert repair.examine(ledger) == []
    run_nodes(bench.begin(), PIPE)
    assert states(bench) == {State.CACHED}


def test_a_mended_lease_gives_no_epoch_twice(bench: Bench) -> None:
    key = bench.results()["shards"].key
    for epoch in (2, 3):
        bench.ledger.release(bench.ledger.acquire(key, "x"))
        bench.ledger.record_attempt(
            AttemptRecord(key=key, epoch=epoch, node="shards", run_id="r", launcher="l", started_at="t", ended_at="t")
        )
    cut(bench.ledger, f"leases/{key}.json")
    repair.apply(repair.examine(bench.ledger))
    assert bench.ledger.acquire(key, "me").epoch == 4


def test_a_damaged_object_is_found_by_reading_it_and_its_producer_runs(bench: Bench) -> None:
    entry = bench.results()["shards"].outputs["shards"].files[0]
    bench.ledger.store.put(entry.object, b"X" * entry.size)
    assert repair.examine(bench.ledger) == [], "name and size are right"
    (finding,) = repair.examine(bench.ledger, deep=True)
    assert finding.object == entry.object
    assert "instead of" in finding.what
    assert states(bench) == {State.CACHED}
    repair.apply([finding])
    found = {p.node.name: p for p in make_plan(PIPE, profile_of(PIPE, bench.folder), bench.ledger)}
    assert found["shards"].state is State.RUN
    run = bench.begin()
    run_nodes(run, PIPE)
    assert run.launcher.started == ["shards"]
    assert states(bench) == {State.CACHED}


def test_lost_objects_are_told_with_what_to_do(bench: Bench) -> None:
    entry = bench.results()["shards"].outputs["shards"].files[0]
    bench.ledger.store.delete([entry.object])
    (finding,) = repair.examine(bench.ledger)
    assert (finding.object, finding.apply) == (entry.object, None)
    assert "'moxin run --select shards --force'" in finding.action


KEY = "e" * 64


def checkpoint(ledger: Ledger, folder: Path, step: int, key: str = KEY) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(f"{step}")
    lease = ledger.acquire(key, "x")
    save_checkpoint(ledger, lease, step, folder)
    ledger.release(lease)


@pytest.mark.parametrize(("how", "deep"), [("cut", False), ("lost", False), ("bytes", True)])
def test_a_torn_checkpoint_is_moved_aside(ledger: Ledger, tmp_path: Path, how: str, deep: bool) -> None:
    for step in (1, 2):
        checkpoint(ledger, tmp_path / "c", step)
    file = ledger.checkpoint(KEY, 2).files[0].object
    harm: dict[str, Callable[[], Any]] = {
        "cut": lambda: cut(ledger, f"checkpoints/{KEY}/{2:012d}/COMMIT.json"),
        "lost": lambda: ledger.store.delete([file]),
        "bytes": lambda: ledger.store.put(file, b"9"),
    }
    harm[how]()
    (finding,) = repair.examine(ledger, deep)
    assert f"checkpoints/{KEY}/{2:012d}/COMMIT.json" == finding.object
    repair.apply([finding])
    assert ledger.checkpoint_steps(KEY) == [1]


def test_what_nobody_can_use_of_checkpoints_is_deleted_but_not_under_a_live_lease(bench: Bench, tmp_path: Path) -> None:
    ledger = bench.ledger
    checkpoint(ledger, tmp_path / "c", 1, bench.results()["train_1"].key)
    lease = ledger.acquire(KEY, "x")
    ledger.upload_checkpoint(lease, 5, tmp_path / "c")
    assert [f.what for f in repair.examine(ledger)] == ["a checkpoint of a result that is published"]
    ledger.release(lease)
    findings = repair.examine(ledger)
    assert sorted(f.what for f in findings) == [
        "a checkpoint of a result that is published",
        "an upload that was never committed",
    ]
    repair.apply(findings)
    left = [row.key.split("/", 2)[2] for row in ledger.store.list("checkpoints/")]
    assert left == [NEWEST], "the number of a step that is gone says nothing; `moxin gc` removes it"


def test_attempts_without_an_end_get_one_when_nobody_is_at_work(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "x")
    record = AttemptRecord(
        key=KEY, epoch=lease.epoch, node="n", run_id="r", launcher="l", started_at="2026-01-01T00:00:00"
    )
    ledger.record_attempt(record)
    assert repair.examine(ledger) == [], "it is at work"
    ledger.release(lease)
    repair.apply(repair.examine(ledger))
    assert [a.exit_class for a in ledger.attempts(KEY)] == ["preempted"]


def test_a_job_that_may_live_on_without_its_control_plane_is_left_to_the_next_run(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "x", seconds=-1)
    record = AttemptRecord(
        key=KEY, epoch=lease.epoch, node="n", run_id="r", launcher="slurm", started_at="t", job="4711"
    )
    ledger.record_attempt(record)
    (finding,) = repair.examine(ledger)
    assert finding.apply is None
    assert "its job 4711 (slurm) may live on" in finding.what


def test_the_command_is_a_dry_run_unless_told(
    bench: Bench, settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Settings, "load", classmethod(lambda cls: settings))
    name = f"manifests/{bench.results()['shards'].key}.json"
    cut(bench.ledger, name)
    with pytest.raises(typer.Exit):
        repairing.repair()
    said = capsys.readouterr().out
    assert f"{name}: " in said
    assert "1 of 1 can be mended: 'moxin repair --apply'" in said
    assert bench.ledger.store.get(name) is not None
    repairing.repair(apply_=True, json_=True)
    told = json.loads(capsys.readouterr().out)
    assert [(row["object"], row["done"]) for row in told["findings"]] == [(name, True)]
    assert told["aside"]["objects"] == 1
    repairing.repair()
    assert capsys.readouterr().out.startswith("nothing is damaged\ndamaged/ holds 1 objects")


def test_a_run_that_starts_meanwhile_keeps_what_is_its(ledger: Ledger, tmp_path: Path) -> None:
    """Between looking and mending: an attempt begins, uploads and commits; nothing of it is touched."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "weights").write_text("1")
    lost = ledger.acquire(KEY, "x")
    ledger.upload_checkpoint(lost, 5, tmp_path / "c")
    ledger.release(lost)
    (finding,) = repair.examine(ledger)
    assert finding.what == "an upload that was never committed"
    begun = ledger.acquire(KEY, "y")
    files = ledger.upload_checkpoint(begun, 5, tmp_path / "c")
    assert repair.apply([finding]) == [], "somebody works on the key"
    ledger.commit_checkpoint(begun, 5, files)
    ledger.release(begun)
    assert repair.apply([finding]) == [], "it is a checkpoint now"
    assert ledger.checkpoint_steps(KEY) == [5]
    ledger.load_checkpoint(ledger.checkpoint(KEY, 5).files, tmp_path / "loaded")


def test_a_record_that_a_run_writes_anew_meanwhile_stays(bench: Bench) -> None:
    name = "nodes/test/shards.json"
    before = bench.ledger.store.get(name)
    assert before is not None
    cut(bench.ledger, name)
    (finding,) = repair.examine(bench.ledger)
    bench.ledger.store.put(name, before[0])
    assert repair.apply([finding]) == []
    assert bench.ledger.node("test", "shards") is not None


def test_the_exit_status_says_whether_something_is_left_to_mend(
    bench: Bench, settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Settings, "load", classmethod(lambda cls: settings))

    def status(**options: bool) -> int:
        try:
            repairing.repair(**options)
        except typer.Exit as ended:
            return ended.exit_code
        return 0

    shard = bench.results()["shards"].outputs["shards"].files[0].object
    assert status() == 0
    cut(bench.ledger, "nodes/test/shards.json")
    assert (status(), status(json_=True)) == (1, 1)
    assert status(apply_=True) == 0
    assert status() == 0
    bench.ledger.store.delete([shard])
    assert status(apply_=True) == 1, "only a run makes it again"
    assert "nothing is damaged" in capsys.readouterr().out
