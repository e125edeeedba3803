"""Estimates: from the last result, else from the stage's own count of work, else none at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from stages.probe_train.spec import Train

from flows import cost
from flows.cost import Estimate, estimate, total, total_text
from flows.plan import make_plan
from stages.core.ledger import Ledger
from stages.core.resources import Work
from tests.support.probe_pipeline import profile_of, small_pipeline

PIPE = small_pipeline()
PRICES = """
[gpu]
dollars_per_hour = 2.0
peak_tflops = 1000.0
utilization = 0.5
writing_utilization = 0.05

[cpu]
dollars_per_core_hour = 0.5
gflops_per_core = 100.0
bytes_per_core_second = 1e6
"""


@pytest.fixture(autouse=True)
def prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round numbers."""
    (tmp_path / "gpu_prices.toml").write_text(PRICES)
    monkeypatch.setattr(cost, "GPU_PRICES", tmp_path / "gpu_prices.toml")


def estimates(
    ledger: Ledger, folder: Path, *overrides: str, select: str = "full", force: bool = False
) -> dict[str, Estimate]:
    profile = profile_of(PIPE, folder, *overrides)
    return estimate(make_plan(PIPE, profile, ledger, select, force), profile, ledger)


def test_the_real_price_list_has_every_number() -> None:
    import tomllib

    found = tomllib.loads((Path(cost.__file__).parents[1] / "infra/gpu_prices.toml").read_text(encoding="utf-8"))
    wanted = tomllib.loads(PRICES)
    assert all(found[table][key] > 0 for table in wanted for key in wanted[table])
    assert found["gpu"]["utilization"] < 1


def test_what_the_ledger_answers_costs_nothing(finished_run: Ledger, tmp_path: Path) -> None:
    found = estimates(finished_run, tmp_path)
    assert set(found) == set(PIPE.nodes)
    assert all(e == Estimate(basis="ledger") for e in found.values())
    sums = total(found)
    assert sums.pop("unknown") == []
    assert set(sums.values()) == {0}


def test_the_last_result_of_a_node_is_the_best_estimate(finished_run: Ledger, tmp_path: Path) -> None:
    found = estimates(finished_run, tmp_path, select="shards", force=True)["shards"]
    last = finished_run.manifest(finished_run.nodes("test")["shards"].key)
    assert last is not None
    assert found.basis == "last result"
    assert found.seconds == last[0].attempt.wall_seconds > 0
    assert found.core_hours == pytest.approx(last[0].attempt.cpu_seconds / 3600)
    assert found.dollars == pytest.approx(found.core_hours * 0.5)


def test_floating_point_work_is_divided_by_the_gpus_rate(ledger: Ledger, tmp_path: Path) -> None:
    """4 steps of 1e15 at 1000 TFLOP/s and 50 %: 8 seconds of one GPU, 1 second on 4 nodes of 2."""
    found = estimates(
        ledger, tmp_path, "resources.train_1.gpus=2", "resources.train_1.nodes=4", "launchers.train_1=slurm"
    )["train_1"]
    assert found.seconds == pytest.approx(1.0)
    assert found.gpu_hours == pytest.approx(8 / 3600)
    assert found.dollars == pytest.approx(16 / 3600)
    assert (found.flops, found.core_hours, found.basis) == (4e15, 0.0, "FLOPs")


def test_what_one_gpu_does_alone_is_not_divided_and_those_that_wait_are_paid_for(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1e15 of 4e15 on one of 8 GPUs: 2 s alone, then 6 s over 8; all 8 are held for both."""
    monkeypatch.setattr(Train, "work", classmethod(lambda cls, config, inputs: Work(4e15, one_gpu_flops=1e15)))
    estimated = estimates(
        ledger, tmp_path, "resources.train_1.gpus=2", "resources.train_1.nodes=4", "launchers.train_1=slurm"
    )["train_1"]
    assert estimated.seconds == pytest.approx(2.0 + 6.0 / 8)
    assert estimated.gpu_hours == pytest.approx(8 * 2.75 / 3600)


def test_without_gpus_it_is_divided_by_the_cores_rate(ledger: Ledger, tmp_path: Path) -> None:
    """4e15 at 100 GFLOP/s: 40,000 core-seconds, 20,000 s on two cores."""
    found = estimates(ledger, tmp_path, "train_1.workers=2")["train_1"]
    assert found.seconds == pytest.approx(20_000)
    assert found.core_hours == pytest.approx(40_000 / 3600)
    assert found.dollars == pytest.approx(20_000 / 3600)
    assert found.gpu_hours == 0.0


def test_other_work_is_counted_in_bytes_of_its_inputs(finished_run: Ledger, tmp_path: Path) -> None:
    profile = profile_of(PIPE, tmp_path, "vocabulary.vocab_size=7", text='[node.source_b]\ntext = "b"\n')
    plans = make_plan(PIPE, profile, finished_run, "vocabulary")
    (tmp_path / "other.toml").write_text("")
    from dataclasses import replace

    found = estimate(plans, replace(profile, name="without-history"), finished_run)["vocabulary"]
    assert found.basis == "bytes"
    assert found.seconds == pytest.approx(8e-6), "two inputs of four bytes, at a megabyte a second"


def test_no_number_is_made_up(ledger: Ledger, tmp_path: Path) -> None:
    found = estimates(ledger, tmp_path, select="+shards")
    assert all((e.seconds, e.dollars, e.basis) == (0.0, 0.0, "") for e in found.values())
    assert total(found)["unknown"] == ["source_a", "source_b", "vocabulary", "shards"]
    assert found["shards"].text() == "time not known (the bytes of its input documents are not known)"


def test_texts_for_people() -> None:
    assert Estimate(seconds=534.4, basis="bytes").text() == "534 s"
    assert Estimate(seconds=1234.4, basis="bytes").text() == "21 min"
    assert Estimate(seconds=86_400.0, basis="bytes").text() == "24 h"
    assert (
        Estimate(seconds=864_000.0, gpu_hours=1500.4, dollars=3000.6, basis="FLOPs").text()
        == "10 days, 1,500 GPU-h, $3,001"
    )
    assert Estimate(seconds=1.0, basis="x").row()["basis"] == "x"


def test_the_sums_in_one_line(ledger: Ledger, finished_run: Ledger, tmp_path: Path) -> None:
    profile = profile_of(PIPE, tmp_path, "resources.probe_train.gpus=1")
    plans = make_plan(PIPE, profile, ledger, "full")
    found = estimate(plans, profile, ledger)
    sums = total(found)
    assert sums["flops"] == 8e15
    assert sums["gpu_hours"] == pytest.approx(16 / 3600)
    text = total_text(found, plans)
    assert text.splitlines()[0] == "6 nodes, 6 to run: 0.0 GPU-hours, 0.00 core-hours, $0.01; no time yet for 4 of them"
    done = make_plan(PIPE, profile_of(PIPE, tmp_path), finished_run, "full")
    assert total_text(estimate(done, profile, finished_run), done) == "6 nodes, 0 to run"
