"""`moxin verify`: what the terminal and the exit status say."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flows import launch
from flows.cli import app, verify
from flows.experiments.results import records
from flows.release import signing
from flows.release.chain import read
from flows.report.data import collect
from flows.settings import Settings
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from tests.support.bench import PIPE, Bench
from tests.support.probe_pipeline import InlineLauncher, copy_ledger, profile_of, run_nodes
from tests.support.released_model import released
from tests.support.signing_keys import key_pair


@pytest.fixture
def bench(finished_run: Ledger, ledger: Ledger, tmp_path: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Everything of the small pipeline has run once; the command works on it."""
    copy_ledger(finished_run, ledger)

    @contextlib.contextmanager
    def opened(_: Any) -> Iterator[Ledger]:
        yield ledger

    module = verify.__globals__
    monkeypatch.setitem(module, "open_ledger", opened)
    monkeypatch.setitem(module, "find_node", lambda name: PIPE[name])

    def values(ledger: Ledger, name: str, experiment: str, overrides: list[str]) -> Any:
        return PIPE, profile_of(PIPE, tmp_path, *overrides)

    monkeypatch.setitem(module, "read_profile", values)
    monkeypatch.setattr(Settings, "load", lambda: settings)
    monkeypatch.setattr(launch, "launcher", lambda name, settings: InlineLauncher(tmp_path))
    return Bench(ledger, tmp_path)


def verified(*words: str) -> int:
    """The exit status."""
    try:
        return int(app(["verify", *words, "--profile", "test"], standalone_mode=False) or 0)
    except typer.Exit as ended:
        return ended.exit_code


def test_a_chain_that_holds(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified("train_2") == 0
    said = capsys.readouterr().out
    assert "train_2: 6 results, 6 files (" in said
    assert "every link holds" in said


def test_a_broken_link_is_named_and_the_status_is_1(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    entry = bench.results()["vocabulary"].outputs["tokenizer"].files[0]
    bench.ledger.store.put(entry.object, b"X" * entry.size)
    assert verified("train_2", "--quick") == 0
    assert "names and sizes alone: --deep reads them" in capsys.readouterr().out
    assert verified("train_2") == 1
    said = capsys.readouterr().out
    assert "broken: vocabulary: output tokenizer, file tokenizer.json: " in said
    assert "1 links are broken" in said
    assert verified("train_2", "--json") == 1
    row = json.loads(capsys.readouterr().out)
    assert (row["ok"], row["results"], [fault["node"] for fault in row["faults"]]) == (False, 6, ["vocabulary"])


def test_another_result_than_the_newest(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """By its key, or by the settings that it has: both look at that result, and say nothing of the newest one."""
    old = bench.results()["train_1"]
    run_nodes(bench.begin("train_1.learning_rate=0.2"), PIPE)
    new = bench.results()["train_1"]
    bench.ledger.store.put(old.outputs["model"].files[0].object, b"X")
    assert verified("train_1") == 0
    assert verified("train_1", "--set", "train_1.learning_rate=0.2") == 0
    assert verified("train_1", "--key", new.key[:12]) == 0
    assert verified("train_1", "--key", old.key[:12]) == 1
    assert verified("train_1", "--set", f"train_1.learning_rate={old.config['learning_rate']}") == 1
    assert "broken: train_1: output model" in capsys.readouterr().out
    values = profile_of(PIPE, bench.folder, f"train_1.learning_rate={old.config['learning_rate']}")
    data = collect(bench.ledger, "test", PIPE, values, records(bench.ledger, PIPE, values))
    of = {node["name"]: node for node in data["nodes"]}
    assert (of["train_1"]["result"]["key"], of["train_1"]["state"]) == (old.key, "damaged")


def test_a_rerun(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified("train_2", "--rerun", "shards", "--json") == 0
    row = json.loads(capsys.readouterr().out)["rerun"]
    assert (row["node"], row["promise"], row["same_bits"], row["kept"]) == ("shards", "no", True, True)


def test_a_released_folder(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = key_pair(tmp_path / "keys")
    folder = released(bench.ledger, read(bench.ledger, "test", "train_2"), tmp_path / "Moxin-LLM", private)
    signing.sign(folder, private)
    assert verified(str(folder), "--public-key", str(public)) == 0
    assert "Moxin-LLM: 6 results, 6 files (" in capsys.readouterr().out
    (folder / "README.md").write_text("# Another model\n")
    assert verified(str(folder), "--public-key", str(public), "--json") == 1
    row = json.loads(capsys.readouterr().out)
    assert {(fault["node"], fault["link"]) for fault in row["faults"]} == {
        (paper, "file README.md") for paper in ("release.json", "provenance.intoto.json", "model.sig")
    }
    monkeypatch.chdir(tmp_path)
    assert verified("Moxin-LLM", "--json") == 1, "a folder of this place"
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 2


def test_options_that_do_not_go_together(bench: Bench, tmp_path: Path) -> None:
    for words, why in (
        ((str(tmp_path), "--rerun", "shards"), "is a folder: --rerun, --quick, --set and --key are for nodes"),
        ((str(tmp_path), "--key", "abcdef"), "is a folder: --rerun, --quick, --set and --key are for nodes"),
        ((str(tmp_path / "none"),), "there is no folder"),
        (("train_2", "--public-key", "x.pem"), "--public-key goes with the folder of a release"),
    ):
        with pytest.raises(ConfigError, match=why):
            verified(*words)
