"""The pipeline's own stages on real engines: results equal to the process launcher's, nothing left after a cancel, two
nodes.

A part of the DAG with small numbers: the data branch and one training. The images are built from the code that lies
here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.launch import slurm
from stages.core.keys import sha256
from stages.pipeline import PIPELINE
from tests.support.installation import SMALL, Installation, kill, sets, wait_for
from tests.support.limits import DAG

pytestmark = [pytest.mark.slow, pytest.mark.container]
LONG = SMALL | {"pretrain_1.tokens": 307_200, "pretrain_1.checkpoint_every": 20, "pretrain_1.log_every": 1}
"""300 steps: time to break something."""


class OnLaunchers(Installation):
    """An installation whose commands know the test cluster."""

    @property
    def env(self) -> dict[str, str]:
        site = self.home.parent / "site.toml"
        site.write_text("poll_seconds = 1\n")
        return super().env | {"SLURM_CONF": "/var/lib/moxin-slurm/slurm.conf", "MOXIN_SLURM_SITE": str(site)}

    def states(self, *arguments: str) -> dict[str, str]:
        """What became of each node of a run."""
        return {row["name"]: row["state"] for row in self.json("run", *arguments)["nodes"]}

    def digests(self) -> dict[str, str]:
        """The digest of every output."""
        return {f"{row['node']}.{row['output']}": row["digest"] for row in self.json("ls")["artifacts"]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, docker_client: Any, built: Any) -> Iterator[OnLaunchers]:
    """Everything before the first training, run in containers."""
    nodes = [PIPELINE[name] for name in (*PIPELINE.ancestors("pretrain_1"), "pretrain_1")]
    built(*dict.fromkeys(node.stage for node in nodes))
    found = OnLaunchers(tmp_path_factory.mktemp("engines") / "home")
    found.moxin("up")
    found.moxin("run", "--select", "+tokenize_short", "--launcher", "docker", *sets(SMALL))
    yield found
    found.moxin("down")


def containers(client: Any, of: OnLaunchers) -> list[Any]:
    """The containers of an installation."""
    return list(client.containers.list(all=True, filters={"label": label_of(of)}, ignore_removed=True))


def label_of(of: OnLaunchers) -> str:
    return f"moxin.home={sha256(str(of.home).encode())[:16]}"


def test_data_made_in_containers_is_what_processes_make(prepared: OnLaunchers) -> None:
    before = prepared.digests()
    assert before.keys() >= {
        "collect.web",
        "dedup_web.documents",
        "quality_web.kept",
        "tokenizer.tokenizer",
        "tokenize_short.shards",
    }
    assert set(prepared.states("--select", "+tokenize_short", *sets(SMALL)).values()) == {"cached"}, (
        "the keys are the same"
    )
    again = prepared.states("--select", "+tokenize_short", "--force", "--launcher", "process", *sets(SMALL))
    assert set(again.values()) == {"done"}
    assert prepared.digests() == before, "and so are the bytes"


def test_a_training_in_a_container_is_what_a_process_trains(prepared: OnLaunchers) -> None:
    arguments = ["--select", "pretrain_1", *sets(SMALL)]
    assert prepared.states(*arguments, "--launcher", "docker") == {"pretrain_1": "done"}
    losses = [row["loss"] for row in prepared.metrics("pretrain_1")]
    assert prepared.states(*arguments, "--set", "launchers.pretrain=process") == {"pretrain_1": "cached"}
    assert prepared.states(*arguments, "--force") == {"pretrain_1": "done"}
    assert [row["loss"] for row in prepared.metrics("pretrain_1")] == pytest.approx(losses, rel=1e-5)


def past_a_checkpoint(prepared: OnLaunchers, overrides: dict[str, Any]) -> None:
    key = prepared.key("pretrain_1", overrides)
    wait_for(lambda: any(e["event"] == "checkpoint" for e in prepared.events(key)), "the training saved no checkpoint")


def started_in_the_ui(prepared: OnLaunchers, overrides: dict[str, Any]) -> str:
    """A run of the deployment on Docker, as the UI's button makes it; its id once its stage has passed a checkpoint."""
    found = prepared.prefect("GET", "/deployments/name/moxin/pretrain_1")
    values = [part for part in sets(overrides | {"launcher": "docker"}) if part != "--set"]
    body = {"parameters": {"select": "pretrain_1", "set": values}, "state": {"type": "SCHEDULED"}}
    run_id = prepared.prefect("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"]
    past_a_checkpoint(prepared, overrides)
    return run_id


def has_resumed(prepared: OnLaunchers) -> None:
    """The last run went on from a checkpoint, and finished."""
    assert prepared.json("show", "pretrain_1")["attempt"]["resumed_from"] >= 20
    assert [row["step"] for row in prepared.metrics("pretrain_1")] == list(range(1, 301))


def test_a_run_cancelled_in_the_ui_leaves_no_container_and_the_next_one_resumes(
    prepared: OnLaunchers, docker_client: Any
) -> None:
    overrides = LONG | {"pretrain_1.seed": 11}
    run_id = started_in_the_ui(prepared, overrides)
    assert [c.status for c in containers(docker_client, prepared)] == ["running"]
    prepared.prefect("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    wait_for(lambda: not containers(docker_client, prepared), "a container outlived its run")
    wait_for(
        lambda: prepared.prefect("GET", f"/flow_runs/{run_id}")["state"]["type"] == "CANCELLED",
        "the run was not cancelled",
    )
    prepared.moxin("run", "--select", "pretrain_1", "--launcher", "docker", *sets(overrides))
    has_resumed(prepared)


def test_a_killed_worker_and_its_flow_leave_no_container_and_the_run_goes_on_by_itself(
    prepared: OnLaunchers, docker_client: Any
) -> None:
    overrides = LONG | {"pretrain_1.seed": 13}
    run_id = started_in_the_ui(prepared, overrides)
    (container,) = containers(docker_client, prepared)
    services = json.loads((prepared.home / "services.json").read_text())
    for identity in (services["worker"], container.labels["moxin.control"]):
        kill(int(identity.partition(":")[0]))
    wait_for(lambda: not containers(docker_client, prepared), "a container outlived its worker")
    assert docker_client.volumes.list(filters={"label": label_of(prepared)}) == [], (
        "nor does its scratch, with the credentials"
    )
    prepared.moxin("up")  # notices the dead worker, and that nobody works on its run any more
    lost = prepared.prefect("GET", f"/flow_runs/{run_id}")
    assert lost["state"]["type"] == "CRASHED"

    def goes_on() -> bool:
        """Awaited to its end: what it answers late would take the node's name from the next test's run."""
        runs = prepared.prefect("POST", "/flow_runs/filter", {"sort": "START_TIME_DESC"})
        ends = [run["state"] for run in runs if run["parameters"] == lost["parameters"] | {"restarts": 1}]
        assert not any(end["type"] in ("FAILED", "CRASHED", "CANCELLED") for end in ends), ends
        return any(end["type"] == "COMPLETED" for end in ends)

    wait_for(goes_on, "the run was not started again", DAG)
    has_resumed(prepared)


@pytest.mark.usefixtures("slurm_cluster")
def test_data_made_by_slurm_jobs_is_what_processes_make(prepared: OnLaunchers) -> None:
    before = prepared.digests()
    again = prepared.states("--select", "+dedup_web", "--force", "--launcher", "slurm", *sets(SMALL))
    assert again == {"collect": "done", "ingest_web": "done", "dedup_web": "done"}
    assert prepared.digests() == before


def ranks(prepared: OnLaunchers) -> set[tuple[bytes, bytes]]:
    """(Slurm's node, torchrun's rank of it) of every torchrun of this installation that runs now."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"torch.distributed.run" in words and any(word.startswith(bytes(prepared.home)) for word in words):
                environment = dict(row.partition(b"=")[::2] for row in (entry / "environ").read_bytes().split(b"\0"))
                found |= {(environment[b"SLURMD_NODENAME"], word) for word in words if word.startswith(b"--node-rank=")}
    return found


@pytest.mark.usefixtures("slurm_cluster")
def test_a_training_on_two_nodes_survives_a_requeue(prepared: OnLaunchers) -> None:
    overrides = LONG | {
        "pretrain_1.seed": 12,
        "pretrain_1.threads": 1,
        "resources.pretrain_1.nodes": 2,
        "launchers.pretrain_1": "slurm",
    }
    run = prepared.start("run", "--select", "pretrain_1", *sets(overrides))
    past_a_checkpoint(prepared, overrides)
    (row,) = slurm.run("squeue", "--noheader", "--name=moxin-pretrain_1", "--format=%i %D").splitlines()
    number, nodes = row.split()
    assert nodes == "2"
    assert ranks(prepared) == {
        (b"virtual1", b"--node-rank=0"),
        (b"virtual2", b"--node-rank=1"),
    }, "srun starts one torchrun on each"
    slurm.run("scontrol", "requeue", number)
    out, err = run.communicate(timeout=DAG)
    assert run.returncode == 0, out + err
    shown = prepared.json("show", "pretrain_1")
    assert (shown["attempt"]["epoch"], shown["attempt"]["resumed_from"] >= 20) == (
        1,
        True,
    ), f"not the same attempt and job: {out}{err}"
    assert shown["stats"]["processes"] == 2
    assert [row["step"] for row in prepared.metrics("pretrain_1")] == list(range(1, 301))
