"""The cache's budget: what goes, in which order, what stays, and what is refused."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.core import eviction
from stages.core.errors import ConfigError, InfraError
from stages.core.eviction import BYTES, LEDGER, budget, count, entries, entry_lock, make_room


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(BYTES, "1000")
    return tmp_path / "cache"


def add(cache: Path, digit: str, size: int, used: int) -> Path:
    """An entry that was last used at a time."""
    path = cache / (2 * digit) / (64 * digit)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * size)
    notes = path.with_name(f"{path.name}.verified")
    notes.touch()
    os.utime(notes, (used, used))
    return path


def disk(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    monkeypatch.setattr(
        eviction, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(total=total, free=free))
    )


def kept(cache: Path) -> list[str]:
    return sorted(entry.path.name[0] for entry in entries(cache))


def test_the_entry_that_was_not_used_for_longest_goes_first(cache: Path) -> None:
    for digit, used in (("a", 30), ("b", 10), ("c", 20)):
        add(cache, digit, 300, used)
    make_room(cache, 100)
    assert kept(cache) == ["a", "b", "c"], "it fits"
    make_room(cache, 200)
    assert kept(cache) == ["a", "c"]
    assert not list(cache.glob("bb/*")), "its lock went with it"
    make_room(cache, 700)
    assert kept(cache) == ["a"]


def test_what_is_held_locked_or_needed_stays(cache: Path, tmp_path: Path) -> None:
    held, locked, needed, free = (add(cache, digit, 300, used) for used, digit in enumerate("abcd"))
    os.link(held, tmp_path / "input")
    with open(f"{locked}.verified", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make_room(cache, 1000, frozenset([needed.name]))
        assert kept(cache) == ["a", "b", "c"]
        assert not free.exists()
    (tmp_path / "input").unlink()
    make_room(cache, 1000)
    assert kept(cache) == []


def test_a_budget_that_is_too_small_refuses_nothing(cache: Path) -> None:
    make_room(cache, 5000)


def test_the_cache_is_looked_through_only_when_the_count_reaches_the_budget(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(cache, "a", 300, 1)
    make_room(cache, 100)
    assert (cache / LEDGER).read_text() == "400"
    looked: list[Path] = []
    monkeypatch.setattr(eviction, "entries", lambda folder: (looked.append(folder), entries(folder))[1])
    make_room(cache, 500)
    count(cache, 50)
    assert (looked, (cache / LEDGER).read_text()) == ([], "950")
    make_room(cache, 100)
    assert (len(looked), (cache / LEDGER).read_text()) == (1, "400"), "what never came is not counted"


def test_a_disk_that_can_never_hold_it_and_one_that_cannot_now(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, total=10_000, free=900)
    with pytest.raises(ConfigError, match=r"^9,950 bytes are to be fetched to .*cache, whose disk has 10,000 in all"):
        make_room(cache, 9_950)
    with pytest.raises(InfraError, match=r"^850 bytes are to be fetched to .*cache, whose disk has 900 free and keeps"):
        make_room(cache, 850)
    make_room(cache, 800)


def test_a_full_disk_makes_entries_go_below_the_budget(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(cache, "a", 300, 1)
    free = [100]
    monkeypatch.setattr(
        eviction,
        "shutil",
        SimpleNamespace(disk_usage=lambda _: SimpleNamespace(total=1000, free=free[0] + 300 * (not kept(cache)))),
    )
    make_room(cache, 200)
    assert kept(cache) == []


def test_the_budget_is_half_the_disk_or_what_is_set(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert budget(cache) == 1000
    monkeypatch.delenv(BYTES)
    assert budget(cache / "not" / "there") == shutil.disk_usage(cache.parent).total // 2
    monkeypatch.setenv(BYTES, "half")
    with pytest.raises(ConfigError, match=r"MOXIN_CACHE_BYTES = 'half': set it to bytes"):
        budget(cache)


def test_a_lock_whose_file_was_removed_is_taken_anew(cache: Path) -> None:
    """Who waits for the lock of an entry that is evicted must not believe that it has it."""
    path = add(cache, "a", 10, 1)
    notes = Path(f"{path}.verified")
    real, taken = fcntl.flock, []

    def flock(stream: object, how: int) -> None:
        if not taken:
            notes.unlink()  # the one before us, just before it lets go
        taken.append(how)
        real(stream, how)  # type: ignore[arg-type]

    eviction.fcntl.flock = flock  # type: ignore[assignment]
    try:
        with entry_lock(path) as lock:
            assert lock is not None
            assert os.path.samestat(os.fstat(lock.fileno()), notes.stat())
    finally:
        eviction.fcntl.flock = real
    assert len(taken) == 2
