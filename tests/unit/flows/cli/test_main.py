"""What `moxin` says of mistakes that no command catches itself: one line and a status, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import cli


@pytest.fixture
def moxin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["moxin", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(str(ended.value.code)), " ".join(capsys.readouterr().err.split())

    return call


def test_a_missing_argument_leads_to_its_own_help(moxin: Callable[..., tuple[int, str]]) -> None:
    assert moxin("why") == (2, "error: Missing argument 'node'. (see 'moxin why --help')")
    status, line = moxin("frob")
    assert (status, line.endswith("(see 'moxin --help')")) == (2, True)


def test_a_state_folder_that_is_none_is_named(
    moxin: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`moxin up` ended with a traceback."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("MOXIN_HOME", str(file))
    status, line = moxin("up")
    assert status == 2
    assert line.startswith(f"error: {file}")
    assert line.endswith(f"MOXIN_HOME = {file}: set it to a folder that you may write")


def test_a_fault_of_the_code_is_shown_whole(
    moxin: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise FileNotFoundError(2, "No such file or directory", "/nowhere/of/ours.toml")

    monkeypatch.setattr(cli, "app", lambda **_: lost())
    monkeypatch.delenv("MOXIN_HOME", raising=False)
    with pytest.raises(FileNotFoundError):
        cli.main()
