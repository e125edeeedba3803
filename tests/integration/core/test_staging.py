"""The local cache over a real store: entries that make room, processes that fetch a file once."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.core import eviction, staging
from stages.core.artifacts import FileEntry
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.core.messages import StoreAddress
from stages.core.staging import Cache
from stages.core.store import Store
from tests.support.s3_proxy import proxied


def stored(ledger: Ledger, tmp_path: Path, name: str, size: int = 300) -> FileEntry:
    (tmp_path / name).write_bytes(name.encode() * size)
    return ledger.store.put_file(f"files/{name}", tmp_path / name)


def kept(folder: Path) -> set[str]:
    return {entry.path.name for entry in eviction.entries(folder)}


def test_entries_that_no_stage_uses_make_room(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(eviction.BYTES, "1000")
    files = {name: stored(ledger, tmp_path, name) for name in "abcde"}
    folder = tmp_path / "cache"

    def fetch(attempt: str, *names: str) -> None:
        Cache(folder, ledger.store, attempt, print).fetch([(files[n], tmp_path / attempt / n) for n in names])

    fetch("first", "a", "b")
    (tmp_path / "first" / "b").unlink()
    fetch("second", "c")
    (tmp_path / "second" / "c").unlink()
    fetch("third", "b")
    (tmp_path / "third" / "b").unlink()
    fetch("fourth", "d")
    digests = {name: entry.sha256 for name, entry in files.items()}
    assert kept(folder) == {digests["a"], digests["b"], digests["d"]}, "c: a is in use, b was used since"
    assert (tmp_path / "first" / "a").read_bytes() == b"a" * 300
    fetch("fifth", "c", "e")
    assert (tmp_path / "fifth" / "c").read_bytes() == b"c" * 300


def test_more_than_the_disk_holds_is_refused_before_the_first_byte(ledger: Ledger, tmp_path: Path) -> None:
    entry = stored(ledger, tmp_path, "a").model_copy(update={"size": 1 << 60})
    with proxied(str(ledger.store.address.endpoint)) as proxy:
        store = Store(ledger.store.address.model_copy(update={"endpoint": proxy.url}))
        with pytest.raises(ConfigError, match=r"1,152,921,504,606,846,976 bytes are to be fetched to .*cache"):
            Cache(tmp_path / "cache", store, "x", print).fetch([(entry, tmp_path / "out")])
        assert proxy.log == []


def test_what_a_stage_made_is_kept_where_it_need_not_be_copied_to_a_full_disk(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = stored(ledger, tmp_path, "a")
    cache = Cache(tmp_path / "cache", ledger.store, "x", print)
    monkeypatch.setattr(staging, "link_or_copy", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    cache.keep(entry, tmp_path / "a")
    assert kept(tmp_path / "cache") == set()
    monkeypatch.undo()
    cache.keep(entry, tmp_path / "a")
    assert kept(tmp_path / "cache") == {entry.sha256}


def _fetch(address: StoreAddress, entry: dict[str, object], folder: Path, target: Path) -> bytes:
    Cache(folder, Store(address), "attempt", print).fetch([(FileEntry.model_validate(entry), target)])
    return target.read_bytes()


def test_of_the_processes_of_a_machine_one_fetches(ledger: Ledger, tmp_path: Path) -> None:
    entry = stored(ledger, tmp_path, "a", 2_000_000)
    with proxied(str(ledger.store.address.endpoint)) as proxy:
        address = ledger.store.address.model_copy(update={"endpoint": proxy.url})
        proxy.rule = lambda method, path: "slow"
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            given = [(address, entry.value(), tmp_path / "cache", tmp_path / f"out-{n}") for n in range(2)]
            found = pool.starmap(_fetch, given, chunksize=1)
        assert found == [b"a" * 2_000_000] * 2
        assert len([path for method, path, _ in proxy.log if method == "GET"]) == 1


def test_entries_come_and_go_while_others_read_them(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget of one entry: each fetch removes what no other uses, and nobody ever sees half of one."""
    monkeypatch.setenv(eviction.BYTES, "301")
    files = [stored(ledger, tmp_path, name) for name in "abcd"]

    def work(number: int) -> bool:
        entry, target = files[number % 4], tmp_path / f"out-{number}"
        Cache(tmp_path / "cache", ledger.store, f"{number}", print).fetch([(entry, target)])
        whole = target.read_bytes() == entry.path.encode() * 300
        target.unlink()
        return whole

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(80)))
    assert os.listdir(tmp_path / "cache")
