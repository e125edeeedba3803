"""Credentials for one attempt: what its policy names, how they are asked for, that they are renewed while it runs."""

from __future__ import annotations

import fnmatch
import http.server
import json
import os
import threading
import time
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.launch import scoped
from flows.settings import Settings
from stages.core import secrets_file
from stages.core.artifacts import ArtifactManifest
from stages.core.errors import ConfigError, InfraError, StageError
from stages.core.messages import CodeRef, InputRef, Lease, Secrets, StageRequest, StoreAddress
from tests.support.limits import HANG
from tests.support.probe_pipeline import wait_for

OWN, TEXT, WEB = "a" * 64, "b" * 64, "c" * 64


def request_of(*inputs: str, bucket: str = "moxin", prefix: str = "team/", endpoint: str | None = None) -> StageRequest:
    """An attempt at a node with these keys as inputs."""
    manifest = ArtifactManifest(type="Documents", digest="d" * 64, facets={})
    refs = tuple(InputRef(node=f"node_{key[:4]}", key=key, port="documents", manifest=manifest) for key in inputs)
    return StageRequest(
        run_id="run-1", node="quality_web", stage="quality", revision=1, key=OWN,
        lease=Lease(key=OWN, epoch=3, holder="h"), config={}, inputs={"documents": refs}, outputs={},
        code=CodeRef(source_digest="0"), store=StoreAddress(bucket=bucket, prefix=prefix, endpoint=endpoint),
    )  # fmt: skip


def test_a_policy_names_what_the_node_reads_and_what_it_writes() -> None:
    own, text, web = OWN[:16], TEXT[:16], WEB[:16]
    at = "arn:aws:s3:::moxin/team/"
    assert scoped.policy(request_of(WEB, TEXT, WEB)) == {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": "s3:GetObject",
                "Resource": [f"{at}*/{own}*", f"{at}*/{text}*", f"{at}*/{web}*", f"{at}memory/*", f"{at}probe/*"],
            },
            {
                "Effect": "Allow",
                "Action": ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
                "Resource": [
                    f"{at}objects/quality/{own}*", f"{at}work/quality/{own}*", f"{at}checkpoints/{own}*",
                    f"{at}manifests/{own}*", f"{at}attempts/{own}*", f"{at}damaged/checkpoints/{own}*", f"{at}memory/*",
                    f"{at}probe/*",
                ],
            },
            {
                "Effect": "Allow",
                "Action": "s3:PutObject",
                "Resource": [f"{at}*/{text}*/DAMAGED.json", f"{at}*/{web}*/DAMAGED.json"],
            },
            {
                "Effect": "Allow",
                "Action": "s3:ListBucket",
                "Resource": "arn:aws:s3:::moxin",
                "Condition": {"StringLikeIfExists": {"s3:prefix": [f"team/*/{own}*", "team/probe/*"]}},
            },
        ],
    }  # fmt: skip


def allowed(document: dict[str, Any], action: str, name: str) -> bool:
    """Whether a policy allows an action on an object, as IAM matches its wildcards."""
    arn = f"arn:aws:s3:::moxin/{name}"
    return any(
        action in ([row["Action"]] if isinstance(row["Action"], str) else row["Action"])
        and any(fnmatch.fnmatchcase(arn, pattern) for pattern in row["Resource"])
        for row in document["Statement"]
        if isinstance(row["Resource"], list)
    )


@pytest.mark.parametrize(
    ("name", "reads", "writes"),
    [
        (f"team/objects/quality/{OWN}/000003/documents/part-00000.parquet", True, True),
        (f"team/work/quality/{OWN}/step/000001.json", True, True),
        (f"team/checkpoints/{OWN}/000000000005/3/state", True, True),
        (f"team/manifests/{OWN}.json", True, True),
        (f"team/attempts/{OWN}/000003.outcome.json", True, True),
        (f"team/requests/{OWN}/000003.json", True, False),
        (f"team/leases/{OWN}.json", True, False),
        (f"team/manifests/{TEXT}.json", True, False),
        (f"team/objects/ingest/{TEXT}/000001/documents/part-00000.parquet", True, False),
        (f"team/objects/ingest/{TEXT}/000001/DAMAGED.json", True, True),
        (f"team/objects/ingest/{WEB}/000001/documents/part-00000.parquet", False, False),
        (f"team/manifests/{WEB}.json", False, False),
        (f"team/checkpoints/{WEB}/000000000005/COMMIT.json", False, False),
        ("team/nodes/7b/quality_web.json", False, False),
        ("team/tags/best.json", False, False),
        ("team/probe/0123", True, True),
        (f"other/manifests/{OWN}.json", False, False),
    ],
)
def test_what_a_policy_lets_an_attempt_do(name: str, reads: bool, writes: bool) -> None:
    document = scoped.policy(request_of(TEXT))
    assert allowed(document, "s3:GetObject", name) is reads
    assert allowed(document, "s3:PutObject", name) is writes
    assert allowed(document, "s3:DeleteObject", name) is (writes and not name.endswith("DAMAGED.json"))


def test_a_policy_is_as_exact_as_the_number_of_inputs_lets_it() -> None:
    keys = [f"{number:02x}" * 32 for number in range(60)]
    other, mark = f"team/objects/ingest/{WEB}/000001/x", f"team/objects/ingest/{WEB}/000001/DAMAGED.json"
    for count, exact in ((4, 2), (12, 1), (60, 0)):  # of the pipeline's nodes, contamination has the most: 12
        text = scoped.policy_text(request_of(*keys[:count], bucket="moxin"))
        document = json.loads(text)
        assert len(text) <= scoped.POLICY_CHARACTERS
        assert document == scoped.policy(request_of(*keys[:count]), exact)
        assert allowed(document, "s3:GetObject", other) is (exact < 1)
        assert allowed(document, "s3:PutObject", mark) is (exact < 2)
        assert not allowed(document, "s3:PutObject", other)
        assert allowed(document, "s3:PutObject", f"team/objects/quality/{OWN}/000001/x")
    with pytest.raises(ConfigError, match=r"2,048 characters at most.*use a shorter prefix \(MOXIN_S3_PREFIX\)"):
        scoped.policy_text(request_of(prefix="p" * 200 + "/"))


# --- how they are asked for -------------------------------------------------------------------------------------------


class Sts(http.server.ThreadingHTTPServer):
    """AssumeRole, as AWS answers it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, str]] = []
        self.status, self.seconds = 200, 3600.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Sts

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append(dict(urllib.parse.parse_qsl(body)) | {"by": self.headers["Authorization"]})
        end = (datetime.now(UTC) + timedelta(seconds=self.server.seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        number = len(self.server.asked)
        answer = (
            "<AssumeRoleResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><AssumeRoleResult><Credentials>"
            f"<AccessKeyId>key-{number}</AccessKeyId><SecretAccessKey>secret-{number}</SecretAccessKey>"
            f"<SessionToken>token-{number}</SessionToken><Expiration>{end}</Expiration></Credentials>"
            "</AssumeRoleResult></AssumeRoleResponse>"
        )
        if self.server.status != 200:
            answer = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *args: object) -> None:
        """Nothing to say."""


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sts]:
    server = Sts()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-control-plane")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("MOXIN_STS_ROLE", "arn:aws:iam::123456789012:role/stages")
    monkeypatch.setenv("MOXIN_STS_ENDPOINT", server.url)
    yield server
    server.shutdown()
    server.server_close()


def settings(folder: Path, external: bool = True) -> Settings:
    credentials = {
        "AWS_ACCESS_KEY_ID": "of-the-control-plane", "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_SHARED_CREDENTIALS_FILE": "/a/file", "AWS_PROFILE": "lab", "AWS_CA_BUNDLE": "/a/bundle",
    }  # fmt: skip
    store = StoreAddress(bucket="moxin", endpoint="http://127.0.0.1:9")
    return Settings(folder, store, "http://127.0.0.1:9/api", external, False, credentials)


def test_without_a_role_a_job_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOXIN_STS_ROLE", raising=False)
    given = scoped.session(settings(tmp_path), request_of())
    assert given.environment == settings(tmp_path).store_environment()
    assert not given.ends


def test_with_a_role_a_job_gets_its_own_and_nothing_of_the_control_planes(sts: Sts, tmp_path: Path) -> None:
    request = request_of(TEXT)
    given = scoped.session(settings(tmp_path), request)
    assert given.environment == {
        "AWS_ACCESS_KEY_ID": "key-1", "AWS_SECRET_ACCESS_KEY": "secret-1", "AWS_SESSION_TOKEN": "token-1",
        "AWS_CA_BUNDLE": "/a/bundle",
    }  # fmt: skip
    assert given.ends
    assert 3500 < given.until - time.time() < 3700
    (asked,) = sts.asked
    assert (asked["Action"], asked["DurationSeconds"]) == ("AssumeRole", "3600")
    assert asked["RoleArn"] == "arn:aws:iam::123456789012:role/stages"
    assert asked["RoleSessionName"] == f"moxin-quality_web-{OWN[:12]}-3"
    assert json.loads(asked["Policy"]) == scoped.policy(request)
    assert "Credential=of-the-control-plane/" in asked["by"]


@pytest.mark.parametrize(
    ("status", "kind", "line"),
    [
        (403, ConfigError, r"gives no credentials for node quality_web \(AccessDenied\): MOXIN_STS_ROLE = arn:aws"),
        (503, InfraError, r"gives no credentials for node quality_web"),
    ],
)
def test_what_the_store_refuses_is_one_line(
    sts: Sts, tmp_path: Path, status: int, kind: type[StageError], line: str
) -> None:
    sts.status = status
    with pytest.raises(kind, match=line) as told:
        scoped.session(settings(tmp_path), request_of())
    assert "\n" not in str(told.value)
    assert "very-secret" not in str(told.value)


def test_the_embedded_store_has_no_roles(sts: Sts, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the embedded store hands out no credentials for an hour: unset it"):
        scoped.session(settings(tmp_path, external=False), request_of())


# --- while a job runs -------------------------------------------------------------------------------------------------


def test_credentials_are_delivered_before_they_end_until_the_job_does(sts: Sts, tmp_path: Path) -> None:
    sts.seconds = 2
    delivered: list[str] = []
    begun = scoped.session(settings(tmp_path), request_of())
    renewal = scoped.Renewal(
        settings(tmp_path), request_of(), begun, lambda new: delivered.append(new.environment["AWS_ACCESS_KEY_ID"])
    )
    wait_for(lambda: len(delivered) >= 2, "a second renewal", HANG)
    renewal.end()
    assert delivered[:2] == ["key-2", "key-3"]


def test_a_job_that_was_taken_over_gets_new_ones_at_once(sts: Sts, tmp_path: Path) -> None:
    delivered: list[str] = []
    renewal = scoped.Renewal(
        settings(tmp_path), request_of(), None, lambda new: delivered.append(new.environment["AWS_ACCESS_KEY_ID"])
    )
    wait_for(lambda: delivered, "its first credentials", HANG)
    renewal.end()
    assert delivered == ["key-1"]


def test_a_stage_takes_what_its_file_of_secrets_says_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", secrets_file.VARIABLE):
        monkeypatch.setenv(name, "to be replaced")
    path = tmp_path / "secrets.json"
    path.write_text(Secrets(environment={"AWS_ACCESS_KEY_ID": "one"}).model_dump_json())
    secrets_file.take_secrets(path)
    path.write_text('{"environment": {"AWS_ACC')
    secrets_file.take_again()
    path.unlink()
    secrets_file.take_again()
    assert os.environ["AWS_ACCESS_KEY_ID"] == "one", "half a file, or none, changes nothing"
    path.write_text(Secrets(environment={"AWS_ACCESS_KEY_ID": "two", "AWS_SESSION_TOKEN": "t"}).model_dump_json())
    secrets_file.take_again()
    assert (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SESSION_TOKEN"]) == ("two", "t")
