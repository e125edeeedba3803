"""faults.md K: what killed runs leave behind goes at the next start; what a live process holds is never touched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows import garbage_collection
from flows.garbage_items import remove_all
from stages.core import workspace
from stages.core.ledger import Ledger
from stages.core.records import AttemptRecord
from tests.support.checkpoints import save_checkpoint
from tests.support.paths import ROOT
from tests.support.probe_pipeline import published, request_of

KEY = "a" * 64
HOLDER = """
import sys, time
sys.path.insert(0, {root!r})
from stages.core.workspace import workspace
with workspace() as folder:
    (folder / "out").mkdir()
    (folder / "out" / "part").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    return tmp_path


def test_the_folder_of_a_killed_stage_goes_and_that_of_a_live_one_stays(home: Path, ledger: Ledger) -> None:
    script = HOLDER.format(root=str(ROOT))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "MOXIN_SCRATCH": str(home / "scratch")},
    )
    try:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().decode().strip())
        assert list(garbage_collection.collect(home, ledger)) == []
        assert (folder / "out" / "part").exists()
    finally:
        process.kill()
        process.wait()
    (line,) = garbage_collection.collect(home, ledger)
    assert "the folders of 1 killed stages: 1,000 bytes" in line
    assert not folder.exists()


def test_an_old_log_that_the_store_has_whole_goes_from_this_machine(home: Path, ledger: Ledger) -> None:
    """Only by `moxin gc`: a look at each would make every start dearer."""
    folder = home / "logs" / "stages" / KEY
    folder.mkdir(parents=True)
    for epoch, stored in ((1, b"whole"), (2, b"who"), (3, None), (4, b"whole")):
        (folder / f"{epoch:06d}.jsonl").write_bytes(b"whole")
        if stored is not None:
            ledger.store.put(ledger.log_key(KEY, epoch), stored)
        if epoch != 4:
            os.utime(folder / f"{epoch:06d}.jsonl", (0, time.time() - 2 * 86_400))
    assert list(garbage_collection.collect(home, ledger)) == []
    lease = ledger.acquire(KEY, "somebody")
    assert [item for item in garbage_collection.local(home, ledger) if item.kind == "local logs"] == []
    ledger.release(lease)
    (item,) = garbage_collection.local(home, ledger)
    assert (item.kind, item.where, item.bytes) == ("local logs", str(folder / "000001.jsonl"), 5)
    assert list(remove_all([item])) == [(item, (1, 5))]
    assert len(list(folder.iterdir())) == 3


def test_a_folder_is_locked_before_a_sweep_can_see_its_mark(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that start together: one sweeps while the other makes its folder."""
    lock, swept = workspace.fcntl.flock, []

    def sweeping(file: Any, flags: int) -> None:
        if not flags & workspace.fcntl.LOCK_NB:
            swept.append(workspace.sweep(home / "scratch"))
        lock(file, flags)

    monkeypatch.setattr(workspace.fcntl, "flock", sweeping)
    with workspace.workspace() as folder:
        assert folder.is_dir()
        assert workspace.sweep(home / "scratch") == (0, 0)
    assert swept == [(0, 0)]


@pytest.mark.parametrize("name", ["stage-half-removed", "secrets-half-made", ".kept-half-kept"])
def test_a_folder_without_an_owners_mark_goes_once_nothing_changes_in_it(home: Path, ledger: Ledger, name: str) -> None:
    """Its process was killed while it made the folder, or while it removed it, the mark before the rest."""
    folder = home / "scratch" / name
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "shard").write_bytes(b"12345")
    assert list(garbage_collection.collect(home, ledger)) == []
    before = time.time() - workspace.UNCLAIMED - 1
    os.utime(folder, (before, before))
    (line,) = garbage_collection.collect(home, ledger)
    assert "the folders of 1 killed stages: 5 bytes" in line
    assert not folder.exists()


def test_requests_of_attempts_that_are_over_go(home: Path, ledger: Ledger) -> None:
    (home / "requests").mkdir()
    live, over = request_of(ledger.store.address, ledger, KEY), request_of(ledger.store.address, ledger, "b" * 64)
    for request in (live, over):
        (home / "requests" / f"{request.key[:16]}-1.json").write_text(request.model_dump_json())
    fresh, old = home / "requests" / "fresh.json", home / "requests" / "old.json"
    for path in (fresh, old):
        path.write_text('{"run_id": "r')
    os.utime(old, (time.time() - 7200,) * 2)
    ledger.release(over.lease)
    record = {"key": over.key, "epoch": over.lease.epoch, "node": "n", "run_id": "r", "launcher": "process"}
    ledger.record_attempt(AttemptRecord(**record, started_at="t"))
    assert list(garbage_collection.collect(home, ledger)) == ["removed 2 requests of attempts that are over"]
    assert sorted(p.name for p in (home / "requests").iterdir()) == [f"{KEY[:16]}-1.json", "fresh.json"]
    (closed,) = ledger.attempts(over.key)
    assert closed.ended_at, "it published, and its control plane was killed: nobody else would ever close it"


def test_checkpoints_of_published_keys_go_and_others_stay(home: Path, ledger: Ledger) -> None:
    (home / "c").mkdir()
    (home / "c" / "weights").write_bytes(b"12345")
    for key in (KEY, "b" * 64):
        lease = ledger.acquire(key, "x")
        save_checkpoint(ledger, lease, 1, home / "c")
        ledger.release(lease)
    from tests.support.probe_pipeline import result_with

    ledger.store.put(f"manifests/{KEY}.json", result_with().model_dump_json().encode())
    (line,) = garbage_collection.collect(home, ledger)
    assert line.startswith("removed the checkpoints of 1 published results: ")
    assert ledger.checkpoint_steps("b" * 64) == [1]
    assert list(ledger.store.list(f"checkpoints/{KEY}/")) == []


def test_kept_outputs_of_published_keys_and_broken_downloads_go(home: Path, ledger: Ledger) -> None:
    from tests.support.probe_pipeline import result_with

    for key in (KEY, "b" * 64):
        (home / "scratch" / f"{workspace.KEPT}{key}").mkdir()
    ledger.store.put(f"manifests/{KEY}.json", result_with().model_dump_json().encode())
    entry = published(ledger, b"text").manifest.files[0]
    broken = home / "cache" / entry.sha256[:2] / f".{entry.sha256}.0123"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"te")
    assert list(garbage_collection.collect(home, ledger)) == [
        "removed outputs kept for 1 keys that are published now",
        "removed 1 broken downloads from the cache: 2 bytes",
    ]
    assert [p.name for p in (home / "scratch").iterdir()] == [f"{workspace.KEPT}{'b' * 64}"]


def test_what_an_attempt_to_make_a_damaged_result_again_has_left_stays(home: Path, ledger: Ledger) -> None:
    """It was trained for days, and stopped: its key is published, by the attempt before."""
    from tests.support.probe_pipeline import result_with

    (home / "c").mkdir()
    (home / "c" / "weights").write_bytes(b"12345")
    ledger.release(ledger.acquire(KEY, "x"))
    ledger.store.put(f"manifests/{KEY}.json", result_with(epoch=1).model_dump_json().encode())
    request = request_of(ledger.store.address, ledger, KEY)
    assert request.lease.epoch == 2
    save_checkpoint(ledger, request.lease, 7, home / "c")
    (home / "made" / "out").mkdir(parents=True)
    assert workspace.keep(request, home / "made", {}) is not None
    ledger.release(request.lease)
    assert list(garbage_collection.collect(home, ledger)) == []
    assert ledger.checkpoint_steps(KEY) == [7]
    ledger.store.put(f"manifests/{KEY}.json", result_with(epoch=2).model_dump_json().encode())
    assert len(list(garbage_collection.collect(home, ledger))) == 2


def test_trouble_with_one_kind_spoils_nothing(home: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(garbage_collection, "_kept", refuse)
    (line,) = garbage_collection.collect(home, ledger)
    assert "could not all be removed" in line
