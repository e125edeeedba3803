"""`moxin gc`: what the terminal, JSON and the exit status say, of a run whose results stay."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli import app, gc
from flows.idle_keys import exclusive
from flows.settings import Settings
from flows.store_garbage import StoreGarbage
from stages.core.ledger import Ledger
from stages.core.records import AttemptRecord
from tests.support.bench import PIPE, Bench
from tests.support.probe_pipeline import copy_ledger, profile_of


@pytest.fixture
def bench(finished_run: Ledger, ledger: Ledger, tmp_path: Path, settings: Any, monkeypatch: Any) -> Bench:
    """Everything of the small pipeline has run once, with resources that cost; the command works on it."""
    copy_ledger(finished_run, ledger)

    @contextlib.contextmanager
    def opened(_: Any) -> Iterator[Ledger]:
        yield ledger

    values = profile_of(PIPE, tmp_path, text="[resources.source_a]\ncpus = 4\ngpus = 1\n")
    module = gc.__globals__
    monkeypatch.setitem(module, "open_ledger", opened)
    monkeypatch.setitem(module, "load_profile", lambda name, overrides: (PIPE, values))
    monkeypatch.setattr(Settings, "load", lambda: settings)
    return Bench(ledger, tmp_path)


def collected(*words: str) -> int:
    """The exit status."""
    try:
        return int(app(["gc", *words, "--min-age", "0"], standalone_mode=False) or 0)
    except typer.Exit as ended:
        return ended.exit_code


def leave(ledger: Ledger, key: str) -> None:
    """A failed attempt of an hour and a half."""
    lease = ledger.acquire(key, "tester")
    ledger.store.put(f"objects/probe_source/{key}/{lease.epoch:06d}/documents/0", b"x" * 1000)
    times = {"started_at": "2026-01-01T00:00:00.000+00:00", "ended_at": "2026-01-01T01:30:00.000+00:00"}
    ledger.record_attempt(
        AttemptRecord(
            key=key, epoch=lease.epoch, node="source_a", run_id="r", launcher="x", exit_class="infra", **times
        )
    )
    ledger.release(lease)


def test_a_finished_run_has_no_garbage(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert collected("--json") == 0
    kinds = json.loads(capsys.readouterr().out)["kinds"]
    assert [row for row in kinds if not row["kept"]] == [], kinds
    assert {row["kind"] for row in kinds} <= {"unreferenced results"}, "other tests' nodes may share the ledger"


def test_nothing_is_removed_without_yes_and_results_never(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    leave(bench.ledger, "a" * 64)
    results = bench.results()
    before = [row.key for row in bench.ledger.store.list("")]
    assert collected() == 0
    said = capsys.readouterr().out
    assert "failed attempts: 1 objects, 1,000 bytes in 1 places; to make it anew: 90 min, 1.5 GPU-h, $3.60" in said
    assert "nothing was removed; --yes frees 1,000 bytes" in said
    assert [row.key for row in bench.ledger.store.list("")] == before
    assert collected("--yes", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    (kind,) = [one for one in row["kinds"] if one["kind"] == "failed attempts"]
    assert (kind["removed_objects"], kind["removed_bytes"], row["interrupted"]) == (1, 1000, False)
    assert bench.results() == results
    for result in results.values():
        assert bench.ledger.missing_objects(result) == []
    assert collected("--yes") == 0
    assert "there is nothing to remove" in capsys.readouterr().out


def test_ctrl_c_gives_the_lease_back_and_says_what_is_gone(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for letter in "ab":
        leave(bench.ledger, letter * 64)
    delete = StoreGarbage._delete

    def interrupted(self: StoreGarbage, folder: str, kept: set[str], lease: Any) -> tuple[int, int]:
        if "b" * 64 in folder:
            raise KeyboardInterrupt
        return delete(self, folder, kept, lease)

    monkeypatch.setattr(StoreGarbage, "_delete", interrupted)
    assert collected("--yes") == 130
    said = capsys.readouterr().out
    assert "removed 1 objects, 1,000 bytes of 2 objects, 2,000 bytes" in said
    assert "interrupted: what is named above is gone" in said
    with exclusive(bench.ledger, "b" * 64, "next") as lease:
        assert lease is not None


def test_the_cache_beyond_its_budget_goes_oldest_first(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{number:064x}" for number in range(3)]
    folder = bench.folder / "home" / "cache" / "00"
    folder.mkdir(parents=True, exist_ok=True)
    for age, name in enumerate(names):
        (folder / name).write_bytes(b"x" * 1000)
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    linked = bench.folder / "linked"
    os.link(folder / names[2], linked)
    assert collected("--yes", "--cache-gib", str(2500 / 2**30)) == 0
    assert "cache: removed 1 objects, 1,000 bytes" in capsys.readouterr().out
    assert sorted(path.name for path in folder.glob("*") if len(path.name) == 64) == [names[0], names[2]]
    assert linked.read_bytes() == b"x" * 1000, "who has linked it keeps it"
