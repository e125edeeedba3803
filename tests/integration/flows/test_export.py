"""An output of a node as a folder: whole, or not there; what was fetched before is not fetched again."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from flows import export
from stages.core.artifacts import FileEntry
from stages.core.errors import ConfigError, InputError
from stages.core.files import file_sha256
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.store_errors import Damaged
from tests.support.family_ledger import artifact
from tests.support.report_pages import publish

FILES = {"config.json": b"{}", "dino/model.safetensors": b"weights" * 999, "dino/empty": b""}


@pytest.fixture
def result(ledger: Ledger) -> StageResult:
    towers = artifact(ledger, "sft_tulu", "model", "Model", FILES, {"vocab_size": 16})
    return publish(ledger, "sft_tulu", outputs={"model": towers})


@pytest.fixture
def fetched(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all files that are asked of the store."""
    paths: list[str] = []
    get_file = ledger.store.get_file

    def counting(entry: FileEntry, path: Path) -> None:
        paths.append(entry.path)
        get_file(entry, path)

    monkeypatch.setattr(ledger.store, "get_file", counting)
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spoil(ledger: Ledger, result: StageResult, path: str, data: bytes) -> None:
    (entry,) = [entry for entry in result.outputs["model"].files if entry.path == path]
    ledger.store.put(entry.object, data)


@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_has_the_artifacts_files_and_says_of_what_they_are(
    ledger: Ledger, result: StageResult, tmp_path: Path, empty: bool
) -> None:
    target = tmp_path / "new" / "folder"
    if empty:
        target.mkdir(parents=True)
    told: list[str] = []
    done = export.write(ledger, result, "", target, told.append)
    there = contents(target)
    says: dict[str, Any] = json.loads(there.pop(export.PROVENANCE))
    assert there == FILES
    manifest = result.outputs["model"]
    assert [path.name for path in target.parent.iterdir()] == ["folder"], "nothing is left beside it"
    assert (done.folder, done.port, done.files, done.bytes, done.kept) == (target, "model", 3, manifest.size, 0)
    assert (says["node"], says["key"], says["port"]) == ("sft_tulu", result.key, "model")
    assert (says["type"], says["digest"], says["facets"]) == ("Model", manifest.digest, {"vocab_size": 16})
    assert says["files"] == {path: file_sha256(target / path) for path in FILES}
    assert len(told) == 3


def test_a_damaged_object_is_one_line_and_no_folder_and_the_next_call_goes_on(
    ledger: Ledger, result: StageResult, tmp_path: Path, fetched: list[str]
) -> None:
    target, partial = tmp_path / "out", tmp_path / ".out.partial" / "files"
    spoil(ledger, result, "config.json", b"[]")
    with pytest.raises(Damaged, match=r"config\.json is damaged: SHA-256 \w+, but its manifest says \w+$"):
        export.write(ledger, result, "model", target)
    assert not target.exists()
    assert "config.json" not in contents(partial)

    spoil(ledger, result, "config.json", FILES["config.json"])
    for path, data in FILES.items():  # as much as an interrupted call may have left: of one file other bytes
        (partial / path).parent.mkdir(exist_ok=True)
        (partial / path).write_bytes(b"{" if path == "config.json" else data)
    (partial / ".model.safetensors.0123").write_bytes(b"half")
    (partial / "other").mkdir()
    (partial / "other" / "artifact").write_bytes(b"of another call")
    fetched.clear()
    assert export.write(ledger, result, "model", target).kept == 2
    assert fetched == ["config.json"]
    assert contents(target).keys() == FILES.keys() | {export.PROVENANCE}
    assert (target / "config.json").read_bytes() == b"{}"
    assert not (target / "other").exists()


def test_a_place_that_is_taken_is_refused_before_anything_is_fetched(
    ledger: Ledger, result: StageResult, tmp_path: Path, fetched: list[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name, what in (("full", "is not empty"), ("file", "is no folder"), ("link", "is no folder")):
        with pytest.raises(ConfigError, match=f"{name} is there already and {what}: move it away"):
            export.write(ledger, result, "", tmp_path / name)
    with pytest.raises(ConfigError, match=r"cannot be written \(Not a directory\)"):
        export.write(ledger, result, "", tmp_path / "file" / "below")
    (tmp_path / ".out.partial").mkdir()
    with open(tmp_path / ".out.partial" / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another 'moxin export' is writing it"):
            export.write(ledger, result, "", tmp_path / "out")
    assert fetched == []
    assert (tmp_path / "full" / "thesis.tex").read_text() == "mine"


def test_a_port_is_chosen_by_name_where_there_are_several(ledger: Ledger, tmp_path: Path) -> None:
    both = {
        port: artifact(ledger, "problems", port, "Problems", {"part-00000.parquet": port.encode()})
        for port in ("train", "test")
    }
    result = publish(ledger, "problems", outputs=both)
    for port, said in (
        ("", "problems has 2 outputs; choose one with --port: train, test"),
        ("trian", "problems has no output 'trian'; did you mean 'train'[?] there are: train, test"),
        ("model", "problems has no output 'model'; there are: train, test"),
    ):
        with pytest.raises(ConfigError, match=said):
            export.write(ledger, result, port, tmp_path / "out")
    export.write(ledger, result, "test", tmp_path / "out")
    assert (tmp_path / "out" / "part-00000.parquet").read_bytes() == b"test"


@pytest.mark.parametrize("path", ["../outside", export.PROVENANCE])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(ledger: Ledger, tmp_path: Path, path: str) -> None:
    listing = artifact(ledger, "collect", "text", "RawFiles", {"fine": b"x"})
    entries = (listing.files[0].model_copy(update={"path": path}),)
    result = publish(ledger, "collect", outputs={"text": listing.model_copy(update={"files": entries})})
    with pytest.raises(InputError, match="which no folder may hold"):
        export.write(ledger, result, "", tmp_path / "in" / "out")
    assert list(tmp_path.iterdir()) == []
