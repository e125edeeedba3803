"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.core.files import ROOT, file_sha256, inside, is_inside, replacing, write_atomically
from tests.support.hostile_names import HOSTILE


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


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    assert not is_inside(name)
    with pytest.raises(InputError, match="is no path inside a folder"):
        inside(tmp_path / "folder", name)


@pytest.mark.parametrize(
    "name",
    [
        "a", "a/b", "part-00000.parquet", ".metadata", "...", "a..b", "..a/b..", "x/...", "with space.txt",
        "größe/数据.json", "甲／乙.txt", "é", "ab:c/d", "n" * 255, "/".join(["n" * 200] * 5), "~", "-rf", "$(x)",
        "a?b*c",
    ],
)  # fmt: skip
def test_a_name_that_stays_inside_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    assert is_inside(name)
    assert inside(tmp_path, name) == tmp_path / name


def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (folder / "file").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop2")
    (folder / "stays").symlink_to("deep")
    for name in ("file", "up/secret", "up/new"):
        with pytest.raises(InputError, match="leads out of its folder by a link"):
            inside(folder, name)
    assert inside(folder, "stays/new") == folder / "stays/new"
    (tmp_path / "by a link").symlink_to(folder)
    assert inside(tmp_path / "by a link", "deep/new") == tmp_path / "by a link" / "deep/new", "the folder may be one"


@given(
    st.text(max_size=40)
    | st.lists(st.sampled_from(["..", ".", "", "a", "\\", "‥", "／", "\0"]), max_size=6).map("/".join)
)
def test_what_is_taken_never_leaves(name: str) -> None:
    folder = Path("/folder")
    if is_inside(name):
        path = os.path.normpath(folder / name)
        assert path.startswith("/folder/")
        assert len(path) == len(f"/folder/{name}"), "nothing of it goes away"
        path.encode()
        assert not PureWindowsPath(name).anchor
        assert ".." not in PureWindowsPath(unicodedata.normalize("NFKC", name)).parts
