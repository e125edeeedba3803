"""A release's folder: whole or not at all, and nobody else's is replaced."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from flows import family
from flows.release import folder, lineage, weights
from stages.core.errors import ConfigError, InputError
from stages.core.files import file_sha256
from stages.core.ledger import Ledger
from stages.core.store_errors import Damaged
from tests.support.family_ledger import artifact, publish_family, republish

NAME = "Moxin-132-Original"


@pytest.fixture
def model(ledger: Ledger) -> lineage.Lineage:
    publish_family(ledger)
    return traced(ledger)


def traced(ledger: Ledger) -> lineage.Lineage:
    return lineage.trace(ledger, "tiny", family.load()["pretrain_2"], ledger.nodes("tiny"))


def describe(target: Path, laid: weights.Weights) -> dict[str, str]:
    return {"README.md": f"{laid.parameters} parameters\n"}


def test_a_folder_has_the_models_files_our_card_and_a_listing_of_all(
    ledger: Ledger, model: lineage.Lineage, tmp_path: Path
) -> None:
    done = folder.write(tmp_path, model, ledger.store, describe)
    assert done.path == tmp_path / NAME
    names = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in done.path.iterdir()} == names | {"release.json"}
    assert (done.path / "README.md").read_text() == "132 parameters\n"
    manifest = folder.read_manifest(done.path)
    assert manifest["files"] == done.files == {name: file_sha256(done.path / name) for name in names}
    assert (manifest["digest"], manifest["key"]) == (model.artifact.digest, model.result.key)
    kept = next(f for f in model.artifact.files if f.path == "model.safetensors")
    assert done.files["model.safetensors"] == kept.sha256, "weights that need no other split keep their bytes"
    assert {path.name for path in tmp_path.iterdir()} == {NAME, ".lock"}


def test_a_second_release_takes_the_first_ones_place(ledger: Ledger, model: lineage.Lineage, tmp_path: Path) -> None:
    folder.write(tmp_path, model, ledger.store, describe, max_shard_bytes=260)
    assert (tmp_path / NAME / weights.INDEX).is_file()
    done = folder.write(tmp_path, model, ledger.store, describe)
    assert not (done.path / weights.INDEX).exists()
    assert len(list(done.path.glob("*.safetensors"))) == 1


def test_what_fails_leaves_no_half_folder_and_the_old_one_as_it_was(
    ledger: Ledger, model: lineage.Lineage, tmp_path: Path
) -> None:
    def broken(target: Path, laid: weights.Weights) -> dict[str, str]:
        raise InputError("no card")

    with pytest.raises(InputError):
        folder.write(tmp_path, model, ledger.store, broken)
    assert not (tmp_path / NAME).exists()
    folder.write(tmp_path, model, ledger.store, describe)
    with pytest.raises(InputError):
        folder.write(tmp_path, model, ledger.store, broken)
    assert (tmp_path / NAME / "README.md").read_text() == "132 parameters\n"
    assert {path.name for path in tmp_path.iterdir()} == {NAME, ".lock"}


def test_what_a_killed_process_left_is_put_right(ledger: Ledger, model: lineage.Lineage, tmp_path: Path) -> None:
    done = folder.write(tmp_path, model, ledger.store, describe)
    done.path.rename(tmp_path / f".{NAME}.replaced")  # killed between the two renames
    (tmp_path / f".{NAME}.0123.partial").mkdir()
    again = folder.write(tmp_path, model, ledger.store, describe)
    assert {path.name for path in tmp_path.iterdir()} == {NAME, ".lock"}
    assert again.files == done.files


def test_a_folder_of_somebody_else_is_never_replaced(ledger: Ledger, model: lineage.Lineage, tmp_path: Path) -> None:
    target = tmp_path / NAME
    target.write_text("a file")
    with pytest.raises(ConfigError, match="and is no folder: move it away"):
        folder.write(tmp_path, model, ledger.store, describe)
    target.unlink()
    target.mkdir()
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"did not write it \(no release\.json\)"):
        folder.write(tmp_path, model, ledger.store, describe)
    (target / "thesis.tex").unlink()
    folder.write(tmp_path, model, ledger.store, describe)  # an empty folder is nobody's
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes\.txt, which 'moxin release' did not write"):
        folder.write(tmp_path, model, ledger.store, describe)
    (target / "notes.txt").unlink()
    (target / "README.md").write_text("edited")
    with pytest.raises(ConfigError, match=r"its README\.md was changed by hand"):
        folder.write(tmp_path, model, ledger.store, describe)
    assert (target / "README.md").read_text() == "edited"


def test_two_releases_at_once_do_not_meet(ledger: Ledger, model: lineage.Lineage, tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(target: Path, laid: weights.Weights) -> dict[str, str]:
        inside.set()
        go_on.wait(60)
        return {}

    first = threading.Thread(target=folder.write, args=(tmp_path, model, ledger.store, slow))
    first.start()
    assert inside.wait(60)
    try:
        with pytest.raises(ConfigError, match="another 'moxin release' is writing there"):
            folder.write(tmp_path, model, ledger.store, describe)
    finally:
        go_on.set()
        first.join()
    assert (tmp_path / NAME).is_dir()


def test_other_bytes_in_the_store_are_not_released(ledger: Ledger, model: lineage.Lineage, tmp_path: Path) -> None:
    entry = next(f for f in model.artifact.files if f.path == "model.safetensors")
    ledger.store.put(entry.object, b"x" * entry.size)
    with pytest.raises(Damaged):
        folder.write(tmp_path, model, ledger.store, describe)
    assert not (tmp_path / NAME).exists()


def test_a_path_that_leaves_the_folder_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    made = publish_family(ledger)
    found = artifact(ledger, "pretrain_2", "model", "Model", {"x.txt": b"x"}, parameters=132)
    escaping = found.files[0].model_copy(update={"path": "../x.txt"})
    republish(ledger, made["pretrain_2"], "bad", outputs={"model": found.model_copy(update={"files": (escaping,)})})
    with pytest.raises(InputError, match=r"lists \.\./x\.txt, which is no path inside a folder"):
        folder.write(tmp_path, traced(ledger), ledger.store, describe)


def test_a_listing_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "release.json").write_text(json.dumps({"files": 3}))
    with pytest.raises(ConfigError, match=r"its release\.json cannot be read"):
        folder.read_manifest(tmp_path)
