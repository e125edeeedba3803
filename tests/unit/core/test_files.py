"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from stages.core.files import ROOT, file_sha256, replacing, write_atomically


def test_the_root_holds_the_package() -> None:
    assert (ROOT / "stages" / "core" / "files.py").is_file()


def test_a_file_is_replaced_at_once_and_what_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "one")

    def give_up() -> None:
        with replacing(path) as partial:
            partial.write_text("tw")
            assert path.read_text() == "one", "until the block ends"
            raise KeyError

    with pytest.raises(KeyError):
        give_up()
    assert path.read_text() == "one"
    write_atomically(path, "two ü", mode=0o600)
    assert path.read_text(encoding="utf-8") == "two ü"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    assert file_sha256(path) == hashlib.sha256("two ü".encode()).hexdigest()


def test_text_that_utf8_cannot_hold_is_an_error_or_escaped(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert list(tmp_path.iterdir()) == []
    write_atomically(path, "\ud800", errors="backslashreplace")
    assert path.read_text() == "\\ud800"
