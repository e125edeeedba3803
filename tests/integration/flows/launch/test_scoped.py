"""Stages with credentials for themselves alone, in a store that refuses what their policy does not name (moto, which
checks every request's signature and policy; it knows neither conditions nor the policy of a session, so that the policy
stands at the role, and a list is held by no prefix).
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from flows.launch import scoped
from flows.launch.base import Job
from flows.launch.process import ProcessLauncher
from flows.settings import Settings
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.core.messages import StageRequest, StoreAddress
from stages.core.store import Store
from tests.support import probe_pipeline

ROLE = "arn:aws:iam::123456789012:role/stages"
AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@dataclass
class Cloud:
    """A store, its users and its roles."""

    url: str
    iam: Any
    keys: dict[str, str]

    def allow(self, document: dict[str, Any]) -> None:
        """Give the stages' role a policy, without conditions."""
        rows = [{name: value for name, value in row.items() if name != "Condition"} for row in document["Statement"]]
        text = json.dumps({"Version": "2012-10-17", "Statement": rows})
        self.iam.put_role_policy(RoleName="stages", PolicyName="now", PolicyDocument=text)


def check_from_now_on(url: str, after: str) -> None:
    """Let moto check requests after so many."""
    plain = {"Content-Type": "text/plain"}  # a form is taken apart
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", after.encode(), plain, method="POST")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        assert answer.status == 200


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    anybody = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1", "endpoint_url": url}
    boto3.client("s3", **anybody).create_bucket(Bucket="moxin")
    iam = boto3.client("iam", **anybody)
    everything = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}
    iam.create_user(UserName="control-plane")
    iam.put_user_policy(UserName="control-plane", PolicyName="all", PolicyDocument=json.dumps(everything))
    key = iam.create_access_key(UserName="control-plane")["AccessKey"]
    anyone = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    trust = {"Version": "2012-10-17", "Statement": [anyone]}
    iam.create_role(RoleName="stages", AssumeRolePolicyDocument=json.dumps(trust))
    keys = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    by_user = anybody | {name.lower(): value for name, value in keys.items()}
    check_from_now_on(url, "0")
    yield Cloud(url, boto3.client("iam", **by_user), keys)
    check_from_now_on(url, "inf")
    server.stop()


@pytest.fixture
def control_plane(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Settings of a control plane whose keys may do everything, and which has a role for stages."""
    for name in AWS_KEYS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**cloud.keys, "MOXIN_STS_ROLE": ROLE, "MOXIN_STS_ENDPOINT": cloud.url}.items():
        monkeypatch.setenv(name, value)
    store = StoreAddress(bucket="moxin", endpoint=cloud.url, prefix=f"{tmp_path.name}/")
    return Settings(tmp_path / "home", store, "http://127.0.0.1:9/api", True, False, cloud.keys)


class ScopedLauncher(ProcessLauncher):
    """Starts stages as processes, each with credentials of its own, as launchers of containers hand them over."""

    def __init__(self, settings: Settings, cloud: Cloud) -> None:
        super().__init__(settings)
        self._cloud = cloud
        self.environments: dict[str, dict[str, str]] = {}
        self.requests: dict[str, StageRequest] = {}

    def _environment(self, job: Job) -> dict[str, str]:
        self._cloud.allow(scoped.policy(job.request))
        given = scoped.session(self._settings, job.request).environment
        env = {name: value for name, value in super()._environment(job).items() if name not in AWS_KEYS} | dict(given)
        self.environments[job.request.node], self.requests[job.request.node] = env, job.request
        return env


@pytest.fixture
def finished(
    cloud: Cloud, control_plane: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[ScopedLauncher, Ledger]:
    """Sources, a vocabulary, shards and two trainings with checkpoints: all have run."""
    monkeypatch.setattr("sys.executable", probe_pipeline.python_with_probes(tmp_path))
    pipeline, ledger = probe_pipeline.small_pipeline(), Ledger(Store(control_plane.store))
    launcher = ScopedLauncher(control_plane, cloud)
    profile = probe_pipeline.profile_of(pipeline, tmp_path)
    run = probe_pipeline.execution(pipeline, profile, ledger, tmp_path, launcher)
    results = probe_pipeline.run_nodes(run, pipeline)
    assert results.keys() == {node.name for node in pipeline}
    return launcher, ledger


def test_every_kind_of_stage_does_its_work_and_no_other(
    finished: tuple[ScopedLauncher, Ledger], cloud: Cloud, control_plane: Settings
) -> None:
    launcher, ledger = finished
    assert launcher.environments.keys() >= {"source_a", "vocabulary", "shards", "train_1", "train_2"}
    keys = {env["AWS_ACCESS_KEY_ID"] for env in launcher.environments.values()}
    assert len(keys) == len(launcher.environments), "each has its own"
    assert cloud.keys["AWS_ACCESS_KEY_ID"] not in keys
    own, other = launcher.requests["train_2"], launcher.requests["source_a"]
    cloud.allow(scoped.policy(own))
    given = launcher.environments["train_2"]
    client = boto3.client(
        "s3", endpoint_url=cloud.url, region_name="us-east-1", config=Config(s3={"addressing_style": "path"}),
        **{name.lower(): given[name] for name in AWS_KEYS},
    )  # fmt: skip
    store = Store(control_plane.store, client, patience=0)
    assert store.get(f"manifests/{own.key}.json") is not None
    assert store.get(f"leases/{own.key}.json") is not None
    foreign = [row.key for row in ledger.store.list("") if other.key in row.key]
    assert f"manifests/{other.key}.json" in foreign
    assert other.key not in {ref.key for refs in own.inputs.values() for ref in refs}, "it is no input of it"
    for name in foreign:
        for act in (lambda name=name: store.get(name), lambda name=name: store.put(name, b"x")):
            with pytest.raises(ConfigError, match="refuses access"):
                act()
    for name in (f"leases/{own.key}.json", f"nodes/test/{own.node}.json", "tags/best.json", "experiments/e.json"):
        with pytest.raises(ConfigError, match="refuses access"):
            store.put(name, b"x")
    (parent,) = {ref.key for refs in own.inputs.values() for ref in refs if ref.node == "train_1"}
    result = ledger.manifest(parent)
    assert result is not None
    (first, *_) = result[0].outputs["model"].files
    assert store.get(first.object) is not None, "its input is read"
    with pytest.raises(ConfigError, match="refuses access"):
        store.put(first.object, b"x")
