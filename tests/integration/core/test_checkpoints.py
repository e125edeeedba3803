"""Checkpoints in the ledger: whole or invisible, two of them, and only from whoever holds the lease."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.artifacts import FileEntry
from stages.core.checkpoints import ROWS, Retention
from stages.core.errors import InfraError, InputError
from stages.core.events import Events
from stages.core.leases import LeaseLost
from stages.core.ledger import Ledger
from stages.core.metric_rows import METRICS_FILE
from stages.core.runtime_checkpoints import RuntimeCheckpoints
from stages.core.store_errors import Damaged
from tests.support.checkpoints import save_checkpoint
from tests.support.probe_pipeline import folder_with, train_request

KEY = "ab" * 32


def test_a_checkpoint_comes_back_as_it_was(ledger: Ledger, tmp_path: Path) -> None:
    lease = ledger.acquire(KEY, "one")
    save_checkpoint(ledger, lease, 7, folder_with(tmp_path / "in", weights="1", state__optimizer="2"))
    assert ledger.checkpoint_steps(KEY) == [7]
    ledger.load_checkpoint(ledger.checkpoint(KEY, 7).files, tmp_path / "out")
    assert {
        p.relative_to(tmp_path / "out").as_posix(): p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file()
    } == {
        "weights": "1",
        "state/optimizer": "2",
    }


def test_a_torn_checkpoint_is_invisible(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = ledger.acquire(KEY, "one")
    folder = folder_with(tmp_path, weights="1")
    save_checkpoint(ledger, lease, 1, folder)
    put = ledger.store.put

    def dies(key: str, data: bytes, **condition: Any) -> str:
        if key.endswith("COMMIT.json"):
            raise SystemExit(137)
        return put(key, data, **condition)

    monkeypatch.setattr(ledger.store, "put", dies)
    with pytest.raises(SystemExit):
        save_checkpoint(ledger, lease, 2, folder)
    assert [o.key for o in ledger.store.list(f"checkpoints/{KEY}/{2:012d}/")], "its files are there"
    assert ledger.checkpoint_steps(KEY) == [1]


def test_only_the_last_two_checkpoints_are_kept(ledger: Ledger, tmp_path: Path) -> None:
    lease = ledger.acquire(KEY, "one")
    for step in (5, 100, 20):
        save_checkpoint(ledger, lease, step, folder_with(tmp_path, weights=str(step)))
    assert ledger.checkpoint_steps(KEY) == [20, 100]
    kept = {o.key.split("/")[2] for o in ledger.store.list(f"checkpoints/{KEY}/")}
    assert kept == {f"{20:012d}", f"{100:012d}", ROWS}


def test_a_lease_that_is_lost_during_the_upload_commits_nothing(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = ledger.acquire(KEY, "old", seconds=-1)
    upload = ledger.store.put_file

    def slow(*arguments: Any, **options: Any) -> Any:
        Ledger(ledger.store).acquire(KEY, "rival")
        return upload(*arguments, **options)

    monkeypatch.setattr(ledger.store, "put_file", slow)
    with pytest.raises(LeaseLost):
        save_checkpoint(ledger, old, 1, folder_with(tmp_path, weights="1"))
    assert ledger.checkpoint_steps(KEY) == []


def test_a_step_saved_again_by_a_later_attempt_is_that_attempts(ledger: Ledger, tmp_path: Path) -> None:
    first = ledger.acquire(KEY, "one", seconds=-1)
    save_checkpoint(ledger, first, 1, folder_with(tmp_path / "a", weights="first"))
    second = ledger.acquire(KEY, "two")
    save_checkpoint(ledger, second, 1, folder_with(tmp_path / "b", weights="second"))
    ledger.load_checkpoint(ledger.checkpoint(KEY, 1).files, tmp_path / "out")
    assert (tmp_path / "out/weights").read_text() == "second"
    assert ledger.checkpoint_steps(KEY) == [1]


def test_two_processes_of_one_attempt_store_nothing_over_each_others_checkpoints(
    ledger: Ledger, tmp_path: Path
) -> None:
    """A machine that its scheduler took for dead lives on, and the job has begun again elsewhere."""
    lease, again = ledger.acquire(KEY, "one"), Ledger(ledger.store)
    ledger.begin_process(lease, 0)
    again.begin_process(lease, 0)
    assert (ledger.start, bool(again.start)) == ("", True)
    texts = {name: tmp_path / name for name in ("of-the-first", "of-the-second")}
    for name, path in texts.items():
        path.write_text(name)
    rows = ledger.upload_rows(lease, 0, texts["of-the-first"], "rows-0")
    files = ledger.upload_checkpoint(lease, 3, folder_with(tmp_path / "first", weights="1"))
    ledger.commit_checkpoint(lease, 3, [*files, rows])
    late = again.upload_checkpoint(lease, 3, folder_with(tmp_path / "second", weights="2"))
    later = again.upload_rows(lease, 0, texts["of-the-second"], "rows-0")
    again.load_checkpoint(again.checkpoint(KEY, 3).files, tmp_path / "out")
    assert (tmp_path / "out" / "weights").read_text() == "1"
    assert (tmp_path / "out" / "rows-0").read_text() == "of-the-first"
    again.commit_checkpoint(lease, 3, [*late, later])
    ledger.load_checkpoint(ledger.checkpoint(KEY, 3).files, tmp_path / "then")
    assert (tmp_path / "then" / "weights").read_text() == "2"
    ledger.drop_checkpoints(KEY, before=lease.epoch)
    assert ledger.checkpoint_steps(KEY) == [3], "of this epoch, by either"
    ledger.drop_checkpoints(KEY, before=lease.epoch + 1)
    assert list(ledger.store.list(f"checkpoints/{KEY}/")) == []


def test_a_marker_that_a_late_list_lacks_goes_before_the_files_that_it_names(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed, and named files that were gone."""
    lease = ledger.acquire(KEY, "one")
    save_checkpoint(ledger, lease, 1, folder_with(tmp_path, weights="1"))
    listed = ledger.store.list
    late = lambda prefix: (row for row in listed(prefix) if not row.key.endswith("/COMMIT.json"))  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(ledger.store, "list", late)
        ledger.drop_checkpoints(KEY, before=lease.epoch + 1)
    assert ledger.checkpoint_steps(KEY) == []


def test_what_a_later_attempt_has_begun_to_store_stays(ledger: Ledger, tmp_path: Path) -> None:
    """Metric rows, of which no checkpoint has been committed yet."""
    early = ledger.acquire(KEY, "one")
    save_checkpoint(ledger, early, 1, folder_with(tmp_path, weights="1"))
    ledger.release(early)
    later = ledger.acquire(KEY, "two")
    path = tmp_path / "rows-0"
    path.write_text("rows")
    rows = ledger.upload_rows(later, 0, path, "rows-0")
    ledger.drop_checkpoints(KEY, before=later.epoch)
    assert ledger.store.get(rows.object) is not None
    assert ledger.checkpoint_steps(KEY) == []


def test_each_rank_of_an_attempt_begins_for_itself(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "one")
    ranks = [Ledger(ledger.store) for _ in range(2)]
    for rank, one in enumerate(ranks):
        one.begin_process(lease, rank)
    assert [one.start for one in ranks] == ["", ""]
    ledger.release(lease)
    later = Ledger(ledger.store)
    later.begin_process(later.acquire(KEY, "two"), 0)
    assert later.start == "", "another epoch"


def test_a_damaged_checkpoint_is_refused_by_name(ledger: Ledger, tmp_path: Path) -> None:
    save_checkpoint(ledger, ledger.acquire(KEY, "one"), 7, folder_with(tmp_path / "in", weights="12345"))
    row = next(o.key for o in ledger.store.list(f"checkpoints/{KEY}/") if o.key.endswith("weights"))
    ledger.store.put(row, b"123x5")
    with pytest.raises(Damaged, match=r"s3://.*/weights is damaged: SHA-256"):
        ledger.load_checkpoint(ledger.checkpoint(KEY, 7).files, tmp_path / "out")
    assert not (tmp_path / "out/weights").exists()


@pytest.mark.parametrize("path", ["../weights", "/tmp/moxin-escaped", "a/../../weights"])
def test_a_checkpoint_whose_files_lead_out_of_its_folder_is_refused(ledger: Ledger, tmp_path: Path, path: str) -> None:
    save_checkpoint(ledger, ledger.acquire(KEY, "one"), 7, folder_with(tmp_path / "in", weights="12345"))
    files = [entry.model_copy(update={"path": path}) for entry in ledger.checkpoint(KEY, 7).files]
    with pytest.raises(InputError, match="is no path inside a folder"):
        ledger.load_checkpoint(files, tmp_path / "deep" / "out")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["weights"]
    assert not Path("/tmp/moxin-escaped").exists()


def test_a_checkpoint_that_vanished_is_said_so(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=f"checkpoint 7 of key {KEY[:12]} has vanished"):
        ledger.checkpoint(KEY, 7)


def test_dropping_removes_all_of_a_key_and_nothing_of_another(ledger: Ledger, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, weights="1", b="2")
    other = "cd" * 32
    save_checkpoint(ledger, ledger.acquire(KEY, "one"), 1, folder)
    save_checkpoint(ledger, ledger.acquire(other, "one"), 1, folder)
    ledger.drop_checkpoints(KEY)
    assert list(ledger.store.list(f"checkpoints/{KEY}")) == []
    assert ledger.checkpoint_steps(other) == [1]


def test_what_is_half_dropped_is_invisible(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(ledger, ledger.acquire(KEY, "one"), 1, folder_with(tmp_path, a="1", b="2"))
    delete, calls = ledger.store.delete, []

    def dies(keys: Iterable[str]) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise InfraError("the store is gone")
        return delete(keys)

    monkeypatch.setattr(ledger.store, "delete", dies)
    with pytest.raises(InfraError):
        ledger.drop_checkpoints(KEY)
    assert ledger.checkpoint_steps(KEY) == []
    assert len(list(ledger.store.list(f"checkpoints/{KEY}/"))) == 3  # two files, and the number of the newest step


@pytest.mark.parametrize("how", ["lost", "garbled", "cut"])
def test_what_the_store_does_not_give_back_is_no_checkpoint(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One object of several, between its upload and the commit: the checkpoint before stays the newest."""
    lease, folder = ledger.acquire(KEY, "one"), folder_with(tmp_path, a="1" * 1000, b="2" * 1000)
    save_checkpoint(ledger, lease, 1, folder)
    send = ledger.store.put_file

    def spoiled(key: str, path: Path, *arguments: Any) -> Any:
        entry = send(key, path, *arguments)
        if path.name == "b" and how == "garbled":
            ledger.store.put(key, b"2" * 999 + b"3")
        elif path.name == "b":
            ledger.store.delete([key])
            if how == "cut":
                ledger.store.put(key, b"2" * 999)
        return entry

    monkeypatch.setattr(ledger.store, "put_file", spoiled)
    with pytest.raises(Damaged, match=r"s3://.*/b"):
        save_checkpoint(ledger, lease, 2, folder)
    assert ledger.checkpoint_steps(KEY) == [1]
    monkeypatch.undo()
    save_checkpoint(ledger, lease, 2, folder)
    assert ledger.checkpoint_steps(KEY) == [1, 2]


@pytest.mark.parametrize("how", ["lost", "cut"])
def test_a_commit_looks_for_what_the_other_processes_stored(ledger: Ledger, tmp_path: Path, how: str) -> None:
    lease = ledger.acquire(KEY, "one")
    files = ledger.upload_checkpoint(lease, 1, folder_with(tmp_path, a="1", b="22"))
    ledger.store.delete([files[1].object])
    if how == "cut":
        ledger.store.put(files[1].object, b"2")
    with pytest.raises(Damaged, match=r"/b, stored a moment ago, (is not in the store|has 1 bytes instead of 2)"):
        ledger.commit_checkpoint(lease, 1, files)
    assert ledger.checkpoint_steps(KEY) == []


def test_a_late_holder_removes_nothing_that_its_successor_is_storing(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was overtaken between the check of its lease and its commit, which removes the steps before."""
    old, folder = ledger.acquire(KEY, "old", seconds=-1), folder_with(tmp_path, weights="1")
    for step in (1, 2):
        save_checkpoint(ledger, old, step, folder)
    files = ledger.upload_checkpoint(old, 3, folder)
    stored: list[FileEntry] = []

    def overtaken(*_: object) -> None:
        stored.extend(Ledger(ledger.store).upload_checkpoint(ledger.acquire(KEY, "new"), 1, folder))

    monkeypatch.setattr(ledger, "_require_stored", overtaken)
    ledger.commit_checkpoint(old, 3, files)
    assert ledger.store.get(stored[0].object) is not None


@given(
    every=st.integers(1, 7), last=st.integers(1, 3), kept=st.integers(0, 30), behind=st.integers(0, 25), to=st.just(120)
)
def test_what_is_kept_lets_a_training_go_back_and_stays_little(
    every: int, last: int, kept: int, behind: int, to: int
) -> None:
    """A checkpoint every few steps, as the rule leaves them each time."""
    retention, steps = Retention(last, kept, behind), list[int]()
    for step in range(every, to, every):
        steps.append(step)
        steps = sorted(retention.kept(steps))
        assert steps[-last:] == list(range(step - every * (min(last, step // every) - 1), step + 1, every))
        if step >= 2 * behind + every and behind:
            assert any(other <= step - behind for other in steps)
        assert len(steps) <= last + 4 + (step // kept if kept else 0)
    if kept:
        assert {-(-mark // every) * every for mark in range(kept, to - every, kept)} <= set(steps)


def test_the_last_and_every_nth_are_kept_and_going_back_drops_what_is_after(ledger: Ledger, tmp_path: Path) -> None:
    request = train_request(ledger, KEY)
    checkpoints = RuntimeCheckpoints(request, ledger, Events(os.dup(1)), tmp_path)
    (tmp_path / "scratch").mkdir()
    checkpoints.retain(last=2, every=4, behind=0)
    rows = tmp_path / METRICS_FILE
    for step in range(1, 11):
        with open(rows, "a") as stream:
            stream.write(f'{{"step": {step}}}\n')
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / "w").write_text(str(step))
        checkpoints.save(step, folder)
    assert ledger.checkpoint_steps(KEY) == [4, 8, 9, 10]
    assert checkpoints.go_back(8)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest[0] == 8
    assert [json.loads(line)["step"] for line in rows.read_text().splitlines()] == list(range(1, 9))
    assert checkpoints.resumed_from is None, "the attempt began with nothing"
    assert ledger.checkpoint_steps(KEY) == [4, 8]
    assert not checkpoints.go_back(3)
    assert checkpoints.newest() is None
    assert ledger.resumable_steps(KEY) == []
    assert rows.read_text() == ""
    with open(rows, "a") as stream:
        stream.write('{"step": 1}\n')
    checkpoints.save(1, tmp_path / "1")
    newest = checkpoints.newest()
    assert newest is not None
    assert newest[0] == 1
    assert rows.read_text() == '{"step": 1}\n'
