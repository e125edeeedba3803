"""Every data set of the hub that `small` and `7b` name, in its real schema, read through the real client libraries from
a hub on loopback.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from flows import profiles, source_checks
from stages.core.errors import InfraError
from stages.lib.data import hub as data_hub
from stages.lib.data import hub_requests
from stages.lib.data.hub import HubDataSet
from stages.pipeline import PIPELINE
from tests.support.hub_sets import COUNT, GATED, pins, repositories
from tests.support.limits import HANG
from tests.support.loopback_hub import TOKEN, Hub

NODES = [
    "instructions_tulu",
    "instructions_infinity",
    "preferences_tulu",
    "preferences_infinity",
    "reasoning_traces",
    "problems",
    "capability",
    "ingest_text",
    "ingest_code",
]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(repositories()) as server:
        yield server


def run(hub: Hub, root: Path, profile: str, *nodes: str, token: str | None = TOKEN) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.hub_stage", profile, str(root / "run"), *nodes]
    done = subprocess.run(
        command, env=hub.environment(root / "home", token), capture_output=True, text=True, check=False, timeout=HANG
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["small", "7b"])
def test_every_node_reads_its_data_sets(hub: Hub, tmp_path: Path, profile: str) -> None:
    found = run(hub, tmp_path, profile, *NODES)
    assert {name: one["error"] for name, one in found.items() if "error" in one} == {}
    assert hub.strange == [], "the libraries ask for nothing else"
    for name in NODES[:6]:
        stats = found[name]["stats"]
        assert stats["rows"] > 0, name
        assert all(
            source["revision"]
            == pins()[
                source["data_set"]
                .partition("/7M")[0]
                .partition("/Gen")[0]
                .partition("/main")[0]
                .partition("/extended")[0]
            ]
            for source in stats["sources"]
        ), name
    assert found["reasoning_traces"]["stats"]["rows"] == COUNT * (1 if profile == "small" else 3), (
        "each problem's verified trace, both configurations"
    )
    assert all(count > 0 for count in found["capability"]["stats"]["train_questions"].values())
    assert found["capability"]["stats"]["test_questions"]["cais/mmlu"] == 24, "two subjects"
    text, code = found["ingest_text"], found["ingest_code"]
    assert text["stats"]["per_source"].keys() == {
        f"slimpajama/{name}" for name in ("RedPajamaCommonCrawl", "RedPajamaC4", "RedPajamaGithub")
    }
    assert len(text["rows"]) == COUNT * (2 if profile == "small" else 1), "training files alone"
    assert {row["license"] for row in code["rows"]} == {"MIT" if profile == "small" else "MIT AND Apache-2.0"}
    assert {row["url"][0] for row in code["rows"]} == {"o" if profile == "small" else "n"}, "repository names"
    assert len(code["rows"]) == 3 * COUNT


@pytest.mark.slow
def test_what_a_hub_refuses_is_one_line_of_its_class_and_what_it_delays_is_waited_for(tmp_path: Path) -> None:
    made = repositories()
    made["allenai/tulu-3-sft-mixture"].busy = made["allenai/llama-3.1-tulu-3-8b-preference-mixture"].broken = 2
    del made["open-r1/OpenR1-Math-220k"]
    made["agentica-org/DeepScaleR-Preview-Dataset"].commit = "e" * 40
    with Hub(made) as hub:
        found = run(
            hub,
            tmp_path,
            "small",
            "instructions_tulu",
            "instructions_infinity",
            "preferences_tulu",
            "reasoning_traces",
            "problems",
            token=None,
        )
    assert found["instructions_tulu"]["stats"]["rows"] == COUNT, "429 with Retry-After, then answers"
    assert found["preferences_tulu"]["stats"]["rows"] == COUNT, "503, then answers"
    kinds = {name: one["error"][0] for name, one in found.items() if "error" in one}
    assert kinds == dict.fromkeys(("instructions_infinity", "reasoning_traces", "problems"), "InputError"), (
        "no repetition mends them"
    )
    assert "data set BAAI/Infinity-Instruct" in found["instructions_infinity"]["error"][1]
    assert (
        "accept its terms on its page on the hub, and set HF_TOKEN where moxin runs"
        in found["instructions_infinity"]["error"][1]
    )
    assert "data set open-r1/OpenR1-Math-220k is refused" in found["reasoning_traces"]["error"][1]
    assert "data set agentica-org/DeepScaleR-Preview-Dataset cannot be used" in found["problems"]["error"][1]
    assert all("\n" not in one["error"][1] for one in found.values() if "error" in one)


@pytest.mark.slow
def test_check_sources_opens_one_row_of_each_and_has_one_line_with_a_remedy_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = repositories()
    made["BAAI/Infinity-Instruct"].accepted = False
    del made["openai/gsm8k"]
    pool = tmp_path / "pool.jsonl"
    pool.write_text(
        json.dumps({"text": "A page.", "metadata": {"WARC-Target-URI": "https://example.org/"}}) + "\n",
        encoding="utf-8",
    )
    (tmp_path / "pool.txt").write_text(f"{pool.as_uri()}\n", encoding="utf-8")
    web = (
        f"collect.web=[{{uri = '{(tmp_path / 'pool.txt').as_uri()}', listed = true, format = 'jsonl', source ="
        " 'dclm'}]"
    )
    values = profiles.load("small", PIPELINE, (web,))
    with Hub(made) as hub:
        hub.enter(monkeypatch, tmp_path / "home", TOKEN)
        found, opened = source_checks.check(PIPELINE, values, None, deadline=HANG)
    lines = [one.line for one in found]
    answered = {one.what for one in opened}
    assert {"allenai/tulu-3-sft-mixture", "cais/mmlu", "agentica-org/DeepScaleR-Preview-Dataset"} <= answered
    assert sum(name.startswith(("hf://", "file://")) for name in answered) == 3, (
        "text, code, and the listed pool's first file"
    )
    assert any("url" in one.answer for one in opened if one.node == "ingest_web"), "the address in a table"
    (gated,) = [line for line in lines if line.startswith("instructions_infinity.sources.0 ")]
    assert "accept the terms on the page of BAAI/Infinity-Instruct and set HF_TOKEN" in gated
    (gone,) = [line for line in lines if line.startswith("problems.sources.0 ")]
    assert gone.startswith("problems.sources.0 = openai/gsm8k: ")
    assert any(line.startswith("tokenizer.path = ") for line in lines), "what preflight knows too"
    assert all("\n" not in line for line in lines)


def test_every_data_set_of_both_profiles_has_a_small_one_here() -> None:
    assert set(pins()) == set(repositories())
    assert set(pins()) >= GATED
    assert all(len(commit) == 40 for commit in pins().values())


def test_a_hub_that_does_not_answer_is_no_missing_card_and_no_fault_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub says of both that the file is "not found"; a licence must not be lost to a broken line."""

    def unreachable(*args: Any, **options: Any) -> Any:
        raise LocalEntryNotFoundError("not in the local cache either") from ConnectionError("the line is broken")

    monkeypatch.setattr(hub_requests, "PAUSES", ())
    monkeypatch.setattr(data_hub, "hf_hub_download", unreachable)
    monkeypatch.setattr(data_hub.HfApi, "dataset_info", lambda *args, **options: SimpleNamespace(sha="0" * 40))
    with pytest.raises(
        InfraError, match=r"data set a/b, README\.md cannot be read: ConnectionError: the line is broken"
    ):
        HubDataSet("a/b", tmp_path)
