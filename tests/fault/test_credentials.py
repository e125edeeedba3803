"""Credentials that expire while a store is in use are renewed by themselves: those of a role by web identity, of a
machine's profile, and of a file that somebody writes anew.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stages.core.messages import StoreAddress
from stages.core.store import Store

STS = (
    "<AssumeRoleWithWebIdentityResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'>"
    "<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{id}</AccessKeyId>"
    "<SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>{end}</Expiration></Credentials>"
    "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
)


class Cloud(http.server.ThreadingHTTPServer):
    """A store that takes the newest identity alone, and the services that hand identities out."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.newest, self.refused, self.on_refusal = 0, 0, lambda: None

    on_refusal: Callable[[], object]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_identity(self) -> tuple[str, str]:
        """A key that is good until the next one, and an end so near that the client asks again soon."""
        self.newest += 1
        return f"key-{self.newest}", (datetime.now(UTC) + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Cloud

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if b"AssumeRoleWithWebIdentity" in body:
            assert b"WebIdentityToken=the-token" in body
            key, end = self.server.next_identity()
            self._answer(200, STS.format(id=key, end=end).encode())
        elif self.path == "/latest/api/token":
            self._answer(200, b"token")
        elif self.path.endswith("/security-credentials/"):
            self._answer(200, b"role")
        elif self.path.endswith("/security-credentials/role"):
            key, end = self.server.next_identity()
            rows = {"Code": "Success", "AccessKeyId": key, "SecretAccessKey": "s", "Token": "t", "Expiration": end}
            self._answer(200, json.dumps(rows).encode())
        elif f"Credential=key-{self.server.newest}/" in self.headers.get("Authorization", ""):
            self._answer(200, b"there")
        else:
            self.server.refused += 1
            self.server.on_refusal()
            self._answer(400, b"<Error><Code>ExpiredToken</Code></Error>")

    do_GET = do_PUT = do_POST = do_any

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing to say."""


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = Cloud()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_role_by_web_identity(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("the-token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/stages")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", cloud.url)
    store = Store(StoreAddress(bucket="b", endpoint=cloud.url), patience=60)
    for _ in range(3):
        assert store.get("x")
    assert (cloud.newest >= 3, cloud.refused) == (True, 0), "renewed before it ended"


def test_the_profile_of_a_machine(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", cloud.url)
    store = Store(StoreAddress(bucket="b", endpoint=cloud.url), patience=60)
    assert store.get("x")
    cloud.next_identity()  # sooner than the machine had said
    assert store.get("x")
    assert (cloud.newest >= 3, cloud.refused >= 1) == (True, True)


def keys(cloud: Cloud) -> str:
    """A credentials file with a new identity."""
    key, _ = cloud.next_identity()
    return f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\naws_session_token = t\n"


def test_a_file_that_is_written_anew(cloud: Cloud, tmp_path: Path) -> None:
    """A session reads it once: what it holds then was used until the end, also after that of its token."""
    file = tmp_path / "credentials"
    file.write_text(keys(cloud))
    store = Store(StoreAddress(bucket="b", endpoint=cloud.url), patience=60)
    assert store.get("x")
    new = keys(cloud)
    cloud.on_refusal = lambda: file.write_text(new)
    assert store.get("x")
    assert cloud.refused >= 1
