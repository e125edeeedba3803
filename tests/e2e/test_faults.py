"""What is killed, cancelled or interrupted leaves nothing running, and the next run goes on from the checkpoint."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import open_browser
from tests.support.installation import SMALL, Installation, kill, sets, wait_for
from tests.support.limits import DAG
from tests.support.prefect_pages import logged_in, press

pytestmark = pytest.mark.e2e
STEPS = 600
"""Many small ones: time to break something through the worker and the server, on a fast machine too."""
FEW = 240
"""Where the stage or the command is struck at once, and what is left is trained to its end."""
TRAIN = {
    "pretrain_1.global_batch_size": 2,
    "pretrain_1.micro_batch_size": 2,
    "pretrain_1.eval_windows": 8,
    "pretrain_1.checkpoint_every": 40,
    "pretrain_1.log_every": 1,
    "pretrain_1.dropout": 0.1,
}


def training(seed: int, steps: int = STEPS) -> dict[str, Any]:
    """Overrides that give each test a training, hence a key, of its own."""
    return SMALL | TRAIN | {"pretrain_1.seed": seed, "pretrain_1.tokens": steps * 2 * 128}


@pytest.fixture(scope="module", autouse=True)
def shards(installation: Installation) -> None:
    """Everything before the training."""
    installation.moxin("run", "--select", "+tokenize_short", *sets(SMALL))


def past_a_checkpoint(installation: Installation, overrides: dict[str, Any]) -> int:
    """Wait until the training has saved a checkpoint and gone on; the stage's process number."""

    key = installation.key("pretrain_1", overrides)

    def look() -> bool:
        events = installation.events(key)
        kinds = [e["event"] for e in events]
        return "checkpoint" in kinds and "metric" in kinds[kinds.index("checkpoint") :]

    wait_for(look, "the training saved no checkpoint")
    pids = installation.stages()
    assert len(pids) == 1
    return pids[0]


def gone(installation: Installation) -> None:
    """No stage process is left."""
    wait_for(lambda: not installation.stages(), "a stage outlived its run")


def state_of(installation: Installation, run_id: str) -> str:
    return installation.prefect("GET", f"/flow_runs/{run_id}")["state"]["type"]


def deploy(installation: Installation, overrides: dict[str, Any]) -> str:
    """A run of the deployment, as the UI's button makes it; its id once its stage has passed a checkpoint."""
    found = installation.prefect("GET", "/deployments/name/moxin/pretrain_1")
    values = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    body = {"parameters": {"select": "pretrain_1", "set": values}, "state": {"type": "SCHEDULED"}}
    return installation.prefect("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"]


def would_resume(installation: Installation, overrides: dict[str, Any]) -> None:
    """The next run would continue from a checkpoint. That it then finishes, other tests see: it trains to the end."""
    rows = installation.json("plan", "--select", "pretrain_1", *sets(overrides))["nodes"]
    assert rows[0]["state"] == "resume"
    assert rows[0]["step"] >= 40


def resumes(installation: Installation, overrides: dict[str, Any]) -> None:
    """The next run continues from a checkpoint and finishes."""
    would_resume(installation, overrides)
    installation.moxin("run", "--select", "pretrain_1", *sets(overrides))
    assert installation.json("show", "pretrain_1")["attempt"]["resumed_from"] >= 40
    steps = overrides["pretrain_1.tokens"] // (2 * 128)
    assert [row["step"] for row in installation.metrics("pretrain_1")] == list(range(1, steps + 1))


def test_a_killed_training_resumes_to_the_curve_of_an_unbroken_one(installation: Installation) -> None:
    overrides = training(1, FEW) | {"retries": 0}
    run = installation.start("run", "--select", "pretrain_1", *sets(overrides))
    kill(past_a_checkpoint(installation, overrides), signal.SIGKILL)
    out, err = run.communicate(timeout=DAG)
    assert run.returncode == 1, out + err
    assert "pretrain_1 failed (preempted): killed by signal 9" in out
    resumes(installation, overrides)
    broken = installation.metrics("pretrain_1")
    installation.moxin("run", "--select", "pretrain_1", "--force", *sets(overrides))
    assert installation.json("show", "pretrain_1")["attempt"]["resumed_from"] is None
    whole = installation.metrics("pretrain_1")
    drop = {"tokens_per_second", "step_processor_seconds"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in broken] == [
        {k: v for k, v in row.items() if k not in drop} for row in whole
    ]


def test_a_killed_stage_is_tried_again_within_the_run(installation: Installation) -> None:
    overrides = training(2, FEW)
    run = installation.start("run", "--select", "pretrain_1", *sets(overrides))
    kill(past_a_checkpoint(installation, overrides), signal.SIGKILL)
    out, err = run.communicate(timeout=DAG)
    assert run.returncode == 0, out + err
    assert "trying again" in out
    assert installation.json("show", "pretrain_1")["attempt"]["resumed_from"] >= 40


def test_ctrl_c_saves_a_checkpoint_and_leaves_nothing(installation: Installation) -> None:
    overrides = training(3, FEW)
    run = installation.start("run", "--select", "pretrain_1", *sets(overrides))
    past_a_checkpoint(installation, overrides)
    kill(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=DAG)
    assert run.returncode == 130, out + err
    assert "interrupted" in err
    gone(installation)
    resumes(installation, overrides)


def test_a_run_cancelled_in_the_ui_ends_cancelled(installation: Installation) -> None:
    overrides = training(4)
    run_id = deploy(installation, overrides)
    past_a_checkpoint(installation, overrides)
    installation.prefect("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    wait_for(lambda: state_of(installation, run_id) == "CANCELLED", "the run was not cancelled")
    gone(installation)
    would_resume(installation, overrides)


def test_a_suspended_run_ends_its_process_and_resumes(installation: Installation) -> None:
    """As the page's buttons do it: what Suspend sends, and what Resume sends."""
    overrides = training(8)
    run_id = deploy(installation, overrides)
    flow = parent_of(past_a_checkpoint(installation, overrides))
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    details = {"pause_timeout": until, "pause_reschedule": True}
    state = {"type": "PAUSED", "name": "Suspended", "state_details": details}
    answer = installation.prefect("POST", f"/flow_runs/{run_id}/set_state", {"state": state})
    assert answer["status"] == "ACCEPT"
    gone(installation)
    wait_for(lambda: not Path(f"/proc/{flow}").exists(), "the flow's process stayed")
    assert installation.prefect("GET", f"/flow_runs/{run_id}")["state"]["name"] == "Suspended"
    would_resume(installation, overrides)
    installation.prefect("POST", f"/flow_runs/{run_id}/resume")
    wait_for(lambda: state_of(installation, run_id) == "COMPLETED", "the run did not go on", DAG)
    assert installation.json("show", "pretrain_1")["attempt"]["resumed_from"] >= 40
    query = {"task_runs": {"flow_run_id": {"any_": [run_id]}}}
    states = [row["state"]["type"] for row in installation.prefect("POST", "/task_runs/filter", query)]
    assert sorted(states) == ["CANCELLED", "COMPLETED"]


def test_suspend_resume_cancel_and_retry_are_buttons_of_a_runs_page(installation: Installation, tmp_path: Path) -> None:
    overrides = training(9)

    def shown(state: str) -> None:
        wait_for(lambda: installation.prefect("GET", f"/flow_runs/{run_id}")["state"]["name"] == state, state, DAG)

    with open_browser(tmp_path / "profile") as browser:
        address = logged_in(installation, browser)
        run_id = deploy(installation, overrides)
        past_a_checkpoint(installation, overrides)
        browser.open(f"{address}/runs/flow-run/{run_id}")
        press(browser, "Suspend")
        press(browser, "Submit")
        shown("Suspended")
        gone(installation)
        press(browser, "Resume")
        press(browser, "Submit")
        wait_for(installation.stages, "it did not go on")
        press(browser, "Cancel")
        press(browser, "Confirm")
        shown("Cancelled")
        gone(installation)
        would_resume(installation, overrides)
        press(browser, "Retry")
        press(browser, "Retry", last=True)
        shown("Completed")
    assert installation.json("show", "pretrain_1")["attempt"]["resumed_from"] >= 40


def test_a_killed_flow_is_crashed_and_its_stage_stops(installation: Installation) -> None:
    overrides = training(5)
    run_id = deploy(installation, overrides)
    stage = past_a_checkpoint(installation, overrides)
    kill(parent_of(stage), signal.SIGKILL)
    wait_for(lambda: state_of(installation, run_id) == "CRASHED", "the run stayed as it was")
    gone(installation)
    would_resume(installation, overrides)


def test_worker_and_flow_killed_together_do_not_stay_running(installation: Installation) -> None:
    overrides = training(6)
    run_id = deploy(installation, overrides)
    stage = past_a_checkpoint(installation, overrides)
    services = json.loads((installation.home / "services.json").read_text())
    kill(int(services["worker"].partition(":")[0]), signal.SIGKILL)
    kill(parent_of(stage), signal.SIGKILL)
    gone(installation)
    installation.moxin("up")  # notices the dead worker, and that nobody works on its run any more
    assert state_of(installation, run_id) == "CRASHED"
    resumes(installation, overrides)


def parent_of(pid: int) -> int:
    """The process that started another."""
    with open(f"/proc/{pid}/stat") as stream:
        return int(stream.read().rpartition(")")[2].split()[1])
