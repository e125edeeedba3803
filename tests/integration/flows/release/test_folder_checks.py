"""`moxin verify FOLDER`: a released model holds by its own papers, and one byte anywhere in it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.release import folder_checks, signing, statement
from flows.release.chain import read
from stages.core.errors import ConfigError
from tests.support.bench import Bench
from tests.support.released_model import released
from tests.support.signing_keys import key_pair


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return key_pair(tmp_path / "keys")


@pytest.fixture
def folder(finished: Bench, tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    """A signed release."""
    made = released(finished.ledger, read(finished.ledger, "test", "train_2"), tmp_path / "Moxin-LLM", keys[0])
    signing.sign(made, keys[0])
    return made


def lines(folder: Path, key: Path | None = None) -> list[str]:
    return [fault.line for fault in folder_checks.verify(folder, key).faults]


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The statement changed, with its form kept, and everything that lists it brought up to date."""
    path = folder / statement.FILE
    value = json.loads(path.read_text())
    change(value["predicate"]["buildDefinition"])
    path.write_text(json.dumps(value))
    for name in (statement.ENVELOPE, "release.json", "model.sig"):
        (folder / name).unlink()


def test_a_release_holds_with_and_without_the_key(folder: Path, keys: tuple[Path, Path]) -> None:
    verdict = folder_checks.verify(folder, keys[1])
    assert (verdict.faults, verdict.notes, verdict.results) == ([], [], 6)
    assert "model.sig was not checked: give --public-key" in folder_checks.verify(folder).notes


def test_a_byte_of_any_file(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    for path in sorted(folder.iterdir()):
        body = path.read_bytes()
        for at in {0, len(body) // 3, 2 * len(body) // 3, len(body) - 2}:
            altered = bytearray(body)
            altered[at] ^= 1
            path.write_bytes(bytes(altered))
            found = lines(folder, keys[1])
            assert any(path.name in line for line in found), (path.name, at, found)
            if path.name != "model.sig":  # which nothing but the key can tell
                assert any(path.name in line for line in lines(folder)) or path.name == "release.json", (path.name, at)
        path.write_bytes(body)
    assert lines(folder, keys[1]) == []


def test_files_more_and_less(folder: Path, keys: tuple[Path, Path]) -> None:
    (folder / "more.py").touch()
    (folder / "README.md").unlink()
    shutil.copytree(folder, folder / ".cache" / "x")
    said = lines(folder, keys[1])
    assert "release.json: file more.py: it is in the folder, and not in the list" in said
    assert "provenance.intoto.json: file README.md: it is in the list, and not in the folder" in said
    assert "model.sig: file more.py: it was not signed" in said
    assert not any(".cache" in line for line in said)


def test_a_statement_with_another_setting_has_the_wrong_key(folder: Path) -> None:
    rewritten(folder, lambda build: build["internalParameters"]["results"][-1]["identity"].update(learning_rate=9.0))
    (line,) = lines(folder)
    assert line.startswith("train_2: key ")


def test_a_statement_with_another_source_is_broken_at_the_source(folder: Path) -> None:
    def change(build: dict[str, Any]) -> None:
        first = build["internalParameters"]["results"][0]
        first["outputs"]["documents"]["files"][0][2] = "0" * 64

    rewritten(folder, change)
    said = lines(folder)
    assert said[0].startswith("source_a: output documents: its files give the digest ")
    assert any(line.startswith("source_a: source source_a.documents/deep/part-00000.txt: ") for line in said)


def test_a_statement_with_another_input_is_broken_at_the_input(folder: Path) -> None:
    def change(build: dict[str, Any]) -> None:
        build["internalParameters"]["results"][-1]["inputs"]["parent"][0]["digest"] = "0" * 64

    rewritten(folder, change)
    said = lines(folder)
    assert any(line.startswith("train_2: key ") for line in said)
    assert any(line.startswith(f"train_2: input parent from train_1.model: it read {'0' * 64}") for line in said)


def test_what_is_no_statement_of_ours(folder: Path) -> None:
    rewritten(folder, lambda build: build["internalParameters"].update(results=[{"key": 1}]))
    assert lines(folder)[0].startswith("provenance.intoto.json: chain: it is not told as Moxin tells it")


def test_another_model_in_release_json(folder: Path) -> None:
    value = json.loads((folder / "release.json").read_text())
    (folder / "release.json").write_text(json.dumps(value | {"digest": "0" * 64}))
    assert any(line.startswith(f"release.json: model: it speaks of {'0' * 64}") for line in lines(folder))


def test_a_folder_without_papers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is no release: it has none of release\.json"):
        folder_checks.verify(tmp_path)
