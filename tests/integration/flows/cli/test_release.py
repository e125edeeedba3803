"""`moxin release`: what it prints, and choices that do not go together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from flows.cli import app, release
from flows.release import publish
from flows.settings import Settings
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from tests.support.family_ledger import publish_family
from tests.support.model_hub import ModelHub


@pytest.fixture(autouse=True)
def _results(store_server: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publish_family(ledger)

    @contextlib.contextmanager
    def opened(settings: object) -> Iterator[Ledger]:
        yield ledger

    settings = replace(store_server, home=tmp_path / "home")
    monkeypatch.setattr(Settings, "load", lambda: settings)
    monkeypatch.setitem(release.__globals__, "open_ledger", opened)


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    app(["release", *options], standalone_mode=False)
    return capsys.readouterr().out


def test_a_release_lies_in_the_state_folder_and_is_told_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = printed(capsys, "--model", "sft_tulu")
    folder = tmp_path / "home" / "release" / "tiny" / "Moxin-132-SFT"
    assert text.startswith("Moxin-132-SFT: sft_tulu ")
    assert str(folder) in text
    assert "data cards: ingest_text, dedup_text, instructions_tulu" in text
    value = json.loads(printed(capsys, "-m", "sft_tulu", "--out", str(tmp_path / "x"), "--json"))
    (model,) = value["models"]
    assert (model["name"], model["node"], value["pushes"]) == ("Moxin-132-SFT", "sft_tulu", [])
    assert set(value["data"]) == {"ingest_text", "dedup_text", "instructions_tulu"}
    assert model["openness"]["class"] == 0
    assert "Technical report" not in model["openness"]["missing"]
    assert "<title>Moxin: run report" in (tmp_path / "x" / "report.html").read_text(encoding="utf-8")
    assert set(model["files"]) >= {"README.md", "LICENSE", "model.safetensors"}


def test_a_page_that_is_no_report_of_ours_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<title>My own</title>", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"report\.html is there already, and is no report of 'moxin report'"):
        printed(capsys, "-m", "sft_tulu", "--out", str(tmp_path))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "<title>My own</title>"


def test_the_whole_family_is_refused_as_long_as_one_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="Moxin-7B-Enhanced: node pretrain_3 has no result in profile 'tiny'"):
        printed(capsys)


def test_a_push_is_shown_and_then_done(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    common = ("-m", "sft_tulu", "--out", str(tmp_path / "x"), "--push", "us")
    with ModelHub() as hub:
        monkeypatch.setattr(publish, "_api", lambda: HfApi(endpoint=hub.endpoint, token=hub.TOKEN))
        shown = printed(capsys, *common, "--dry-run")
        assert "us/Moxin-132-SFT: would push 11 files" in shown
        assert "a new repository" in shown
        assert hub.repositories == {}
        done = printed(capsys, *common, "--yes")
        assert "us/Moxin-132-SFT: pushed 11 files" in done
        assert set(hub.repositories["us/Moxin-132-SFT"]) == {
            p.name for p in (tmp_path / "x" / "Moxin-132-SFT").iterdir()
        }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dry-run",), "name who gets it with --push OWNER"),
        (("--yes",), "name who gets it with --push OWNER"),
        (("--push", "us"), "say --dry-run, to see what would be sent, or --yes, to send it"),
        (("--push", "a/b", "--yes"), "no name of a user or an organization"),
        (("--model", "collect"), "has no model of node 'collect'"),
    ],
)
def test_a_wrong_choice_is_one_line(capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        printed(capsys, *options)
