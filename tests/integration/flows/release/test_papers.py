"""The papers of a release, all together: written by `moxin release`, held against by `moxin verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows import family, profiles
from flows.release import build, croissant, folder_checks, mof_classes, mof_evidence, papers, signing, statement
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.pipeline import PIPELINE
from tests.support.family_ledger import publish_family
from tests.support.signing_keys import key_pair


def write(ledger: Ledger, out: Path, key: Path | None = None) -> build.Release:
    models = family.load()
    lineages = build.prepare(ledger, "tiny", models, ("pretrain_2", "sft_tulu"))
    return build.write(ledger, profiles.load("tiny", PIPELINE, []), models, lineages, build.Target(out, key=key))


def test_a_signed_release_holds_and_a_changed_one_does_not(ledger: Ledger, tmp_path: Path) -> None:
    publish_family(ledger)
    private, public = key_pair(tmp_path / "keys")
    done = write(ledger, tmp_path / "out", private)
    for one in done.models:
        assert set(one.files) > {mof_classes.FILE, statement.FILE, statement.ENVELOPE}
        assert (one.path / signing.SIGNATURE).is_file()
        verdict = folder_checks.verify(one.path, public)
        links = {fault.link.partition(" ")[0] for fault in verdict.faults}
        assert links <= {"key"}, "the keys of these results are invented, nothing else is"
    card = done.models[1].path / "README.md"
    card.write_text(card.read_text().replace("2.5", "1.5"))
    broken = {(f.node, f.link) for f in folder_checks.verify(done.models[1].path, public).faults if "README" in f.link}
    assert broken == {(paper, "file README.md") for paper in ("release.json", statement.FILE, signing.SIGNATURE)}


def test_the_class_is_that_of_what_was_written(ledger: Ledger, tmp_path: Path) -> None:
    publish_family(ledger)
    done = write(ledger, tmp_path)
    base, tuned = (one.path for one in done.models)
    level = done.openness[base.name]
    assert level.level == mof_evidence.read(base).level == 0
    assert set(level.missing) == {"Technical report"}, "a card, its data's cards, weights and scores are there"
    (tmp_path / "report.html").write_text("<html>")
    level = write(ledger, tmp_path).openness[base.name]
    assert level.level == 3
    assert set(level.missing) == {"Evaluation data"}
    rows = {row["name"]: row for row in mof_classes.read(tuned / mof_classes.FILE)["release"]["components"]}
    assert rows["Model parameters (Intermediate)"]["component_path"] == f"../{base.name}"
    assert [row["name"] for row in mof_evidence.released(tmp_path)] == [base.name, tuned.name]


def test_data_sets_are_described_for_machines(ledger: Ledger, tmp_path: Path) -> None:
    publish_family(ledger)
    done = write(ledger, tmp_path)
    value = json.loads((done.data["instructions_tulu"].parent / croissant.FILE).read_text())
    assert value["license"] == "https://spdx.org/licenses/ODC-By-1.0"
    assert [row["@id"] for row in value["recordSet"]] == ["train"]
    assert croissant.load(done.data["ingest_text"].parent / croissant.FILE).metadata.name == "ingest_text"


def test_a_key_that_cannot_sign_is_refused_before_anything_is_written(ledger: Ledger, tmp_path: Path) -> None:
    publish_family(ledger)
    (tmp_path / "key.pem").write_text("noise")
    with pytest.raises(ConfigError, match=r"key\.pem is no private key in PEM form"):
        write(ledger, tmp_path / "out", tmp_path / "key.pem")
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "NEEDED", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"no_such_package: pip install 'moxin\[release\]'"):
        papers.check(None)
