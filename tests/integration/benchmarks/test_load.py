"""The benchmark of load in small: what commands ask the store for grows with what they speak of, with nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load, load_month
from flows import profiles
from flows.empty_ledger import EmptyLedger
from flows.plan import State, make_plan
from flows.settings import Settings
from stages.core.graph import Node
from stages.core.ledger import Ledger
from stages.core.stage import Stage
from tests.support.generated_ledger import GROUP, Filler, layered_pipeline, profile_text

Command = Callable[..., tuple[Counter[str], str]]


@pytest.fixture
def command(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command over the generated pipeline: the requests that it made, and what it said."""
    address = settings.store
    for name, value in {
        "MOXIN_HOME": tmp_path, "MOXIN_S3_ENDPOINT": address.endpoint, "MOXIN_S3_BUCKET": address.bucket,
        "MOXIN_S3_PREFIX": address.prefix, "PREFECT_API_URL": "http://127.0.0.1:9/api", **settings.credentials,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))

    def run(nodes: int, *words: str) -> tuple[Counter[str], str]:
        took = load.command({"nodes": nodes, "folder": str(tmp_path), "words": words})
        assert took["cpu"] > 0 < took["mib"]
        return Counter(took["requests"]), took["said"]

    return run


def fill(ledger: Ledger, folder: Path, nodes: int, *generations: int, failed: int = 0) -> None:
    pipeline = layered_pipeline(nodes)
    for generation in generations:
        (folder / "load.toml").write_text(profile_text(pipeline, generation))
        Filler(ledger).fill(pipeline, profiles.load("load", pipeline, (), folder), f"run-{generation}", failed)


def test_the_generated_pipeline_is_layered_and_no_two_nodes_share_a_key(ledger: Ledger, tmp_path: Path) -> None:
    pipeline = layered_pipeline(13 * GROUP)
    assert len(pipeline) == 130
    assert 2 <= sum(len(node.parents) for node in pipeline) / len(pipeline) <= 3
    assert {"train_0_3", "vocabulary_0"} <= pipeline.ancestors("train_12_0"), "a lane goes on"
    fill(ledger, tmp_path, 2 * GROUP, 0, failed=3)
    plans = make_plan(layered_pipeline(20), profiles.load("load", layered_pipeline(20), (), tmp_path), ledger)
    assert {(plan.state, plan.will_run) for plan in plans} == {(State.CACHED, False)}
    assert len({plan.key for plan in plans}) == 20


def test_a_plan_asks_twice_for_each_node_that_is_made(ledger: Ledger, tmp_path: Path, command: Command) -> None:
    for nodes in (10, 20):
        fill(ledger, tmp_path, nodes, 0)
        requests, _ = command(nodes, "plan", "--json")
        assert requests == {"GetObject": nodes + 2, "ListObjectsV2": nodes}, "two rehearsals"


def test_what_a_plan_costs_in_steps_grows_as_its_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the ancestors of each node were gone through for each node."""
    looks, parents = Counter[str](), Stage.parents.fget
    assert parents

    def counting(node: Node) -> Any:
        looks.update(["parents"])
        return parents(node)

    monkeypatch.setattr(Stage, "parents", property(counting))
    counts: list[float] = []
    for nodes in (100, 400):
        pipeline = layered_pipeline(nodes)
        (tmp_path / "load.toml").write_text(profile_text(pipeline))
        values = profiles.load("load", pipeline, (), tmp_path)
        looks.clear()
        assert len(make_plan(pipeline, values, EmptyLedger(), [f"+{name}" for name in pipeline.nodes])) == nodes
        counts.append(looks["parents"] / nodes)
    assert counts[1] == counts[0] <= 6


def test_reading_commands_do_not_ask_for_what_is_not_theirs(ledger: Ledger, tmp_path: Path, command: Command) -> None:
    """Four times as many results of the same nodes: only their own history grows, and what nobody needs."""
    asked: dict[str, list[Counter[str]]] = {}
    for generations in ((0,), (1, 2, 3)):
        fill(ledger, tmp_path, GROUP, *generations, failed=5)
        for words in (("ls",), ("plan",), ("why", "train_0_3"), ("show", "train_0_3", "--json")):
            asked.setdefault(words[0], []).append(command(GROUP, *words)[0])
    for words, (few, many) in asked.items():
        assert few == many, words
    requests, said = command(GROUP, "show", "train_0_3", "--history", "--json")
    assert said.count('"run_id"') == 4
    assert requests["GetObject"] == 4 + 1, "its attempts, its name: of others nothing is read"
    assert requests["ListObjectsV2"] == 2


def test_a_lineage_reads_each_result_once(ledger: Ledger, tmp_path: Path, command: Command) -> None:
    """Before, it went every way to a source: their number is a product of all that lies between."""
    fill(ledger, tmp_path, 13 * GROUP, 0)
    requests, said = command(13 * GROUP, "lineage", "train_12_3")
    ancestors = layered_pipeline(13 * GROUP).ancestors("train_12_3")
    assert len(ancestors) > 15
    assert requests == {"GetObject": 2 + len(ancestors)}, "its name, itself"
    assert "(above)" in said


def test_an_attempt_of_before_there_were_marks_is_found(ledger: Ledger, tmp_path: Path, command: Command) -> None:
    fill(ledger, tmp_path, GROUP, 0)
    ledger.store.delete([row.key for row in ledger.store.list("attempts/") if ".node." in row.key])
    requests, said = command(GROUP, "show", "train_0_3", "--history", "--json")
    assert said.count('"run_id"') == 1
    assert requests["GetObject"] == GROUP + 1


def test_collecting_garbage_lists_no_key_by_itself(ledger: Ledger, tmp_path: Path, command: Command) -> None:
    lists: list[int] = []
    for generation in (0, 1):
        fill(ledger, tmp_path, 2 * GROUP, generation, failed=2)
        requests, said = command(2 * GROUP, "gc", "--json", "--min-age", "0")
        assert said.count('"kind": "failed attempts"') == 1 + 10 * (generation + 1), "a sum, and each"
        lists.append(requests["ListObjectsV2"])
    assert lists[0] == lists[1]


def test_a_month_is_told_as_a_stage_tells_it(tmp_path: Path) -> None:
    told = list(load_month.lines(2 * load_month.HELD_OUT))
    kinds = Counter(load_month.parse_event(line)["event"] for _, line in told)
    assert kinds == {"metric": 2000, "progress": 200, "log": 3}
    assert sum("val_loss" in line for _, line in told) == 2
    assert [second for second, _ in told] == sorted(second for second, _ in told)
