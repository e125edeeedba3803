"""The folder that all processes of an attempt share, and the cache in it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.core import runtime
from stages.core.reading import CACHE
from stages.core.workspace import shared_folder, sweep


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path))
    monkeypatch.delenv(CACHE, raising=False)


def test_a_shared_folder_goes_with_the_last_of_its_processes(tmp_path: Path) -> None:
    with shared_folder("x") as first:
        (first / "file").touch()
        with shared_folder("x") as second:
            assert second == first
            assert sweep(tmp_path) == (0, 0), "it is in use"
        assert (first / "file").exists(), "the other is still there"
    assert list(tmp_path.iterdir()) == []


def test_without_locks_each_process_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("stages.core.workspace.fcntl.flock", refuse)
    with shared_folder("x") as first, shared_folder("x") as second:
        assert first != second
        (first / "file").touch()
    assert not first.exists()
    assert not second.exists()


def test_a_stages_own_error_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="of the stage"), shared_folder("x"):
        raise FileNotFoundError("of the stage")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_of_it_is_swept_up(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with shared_folder("x") as folder:
            (folder / "file").write_bytes(b"12345")
            os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "stage-x" / "file").exists()
    assert sweep(tmp_path) == (1, 5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_ranks_of_an_attempt_have_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    request: Any = SimpleNamespace(key="k", lease=SimpleNamespace(epoch=3))
    monkeypatch.setattr(runtime, "world_size", lambda: ranks)
    with (
        runtime.cache_folder(request, tmp_path / "one") as one,
        runtime.cache_folder(request, tmp_path / "one") as inherited,
    ):
        assert os.environ[CACHE] == str(one) == str(inherited), "processes that it starts have it too"
    assert CACHE not in os.environ
    with runtime.cache_folder(request, tmp_path / "one") as first:
        del os.environ[CACHE]  # as in another process
        with runtime.cache_folder(request, tmp_path / "two") as second:
            assert (first == second) == (ranks == 2)
        os.environ[CACHE] = str(first)
    monkeypatch.setenv(CACHE, "/the/machines")
    with runtime.cache_folder(request, tmp_path / "one") as given:
        assert given == Path("/the/machines")
