"""What a plan says of credentials that end before a node does, and whose credentials a job is given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import credentials
from flows.cost import Estimate
from flows.launch import base
from flows.launch.kubernetes_manifests import Site, batch_job
from stages.core.errors import ConfigError
from stages.core.messages import CodeRef, Lease, StageRequest, StoreAddress
from stages.core.resources import Resources

TOKEN = {"AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
DAY = 86_400.0


def job() -> base.Job:
    request = StageRequest(
        run_id="r", node="pretrain_1", stage="pretrain", revision=1, key="a" * 64,
        lease=Lease(key="a" * 64, epoch=1, holder="h"), config={}, inputs={}, outputs={},
        code=CodeRef(source_digest="0"), store=StoreAddress(bucket="b"), replaces=None,
    )  # fmt: skip
    return base.Job(request, Resources(), "train")


def told(environ: dict[str, str], launcher: str = "slurm", seconds: float = 34 * DAY) -> list[str]:
    plans: Any = [SimpleNamespace(node=SimpleNamespace(name="pretrain_1"), will_run=True)]
    profile: Any = SimpleNamespace(launchers={"pretrain_1": launcher})
    return list(credentials.expiring(plans, profile, {"pretrain_1": Estimate(seconds)}, environ))


def test_a_copied_token_that_ends_before_its_node_is_told() -> None:
    (line,) = told(TOKEN)
    assert line.startswith(
        "pretrain_1 takes 34 days, and it would be given a copy of a session token that lasts 36 h at most"
    )
    assert told(TOKEN, seconds=DAY) == []
    assert told({}) == [], "keys without an end"
    soon = (datetime.now(UTC) + timedelta(hours=12)).isoformat()
    assert f"lasts until {soon}" in told(TOKEN | {"AWS_CREDENTIAL_EXPIRATION": soon}, seconds=DAY)[0]
    later = (datetime.now(UTC) + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert told(TOKEN | {"AWS_CREDENTIAL_EXPIRATION": later}, seconds=DAY) == []


def test_jobs_with_an_identity_of_their_own_are_given_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, text in (("MOXIN_SLURM_SITE", 'identity = "files"'), ("MOXIN_K8S_SITE", 'service_account = "a"')):
        (tmp_path / variable).write_text(text)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    assert told(TOKEN, "slurm") == []
    assert told(TOKEN, "kubernetes") == []
    assert len(told(TOKEN, "docker")) == 1
    role = {"MOXIN_STS_ROLE": "arn:aws:iam::123456789012:role/stages"}  # the launcher writes them anew
    assert told(TOKEN | role, "docker") == []
    assert len(told(TOKEN | role, "process")) == 1
    here = TOKEN | {"AWS_SHARED_CREDENTIALS_FILE": "/shared/credentials", "MOXIN_STORE_PATIENCE": "7"}
    files = base.secrets_of(job(), here, "files")
    assert files.environment == {"AWS_SHARED_CREDENTIALS_FILE": "/shared/credentials", "MOXIN_STORE_PATIENCE": "7"}
    assert base.secrets_of(job(), here, "account").environment == {"MOXIN_STORE_PATIENCE": "7"}
    pod = batch_job(job(), Site(service_account="a"), "mark")["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("a", False)


def test_an_identity_of_this_machine_is_not_copied() -> None:
    web = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token", "AWS_ROLE_ARN": "arn"}
    with pytest.raises(ConfigError, match="by its own identity"):
        base.secrets_of(job(), web)
    assert "AWS_WEB_IDENTITY_TOKEN_FILE" not in base.secrets_of(job(), web | TOKEN).environment
