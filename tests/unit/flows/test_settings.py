"""Where things are: a store of the user's own, or the embedded one; and no secret in anything that is shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flows.local_services import lifecycle
from flows.settings import FOREIGN, Settings, environment, home, read_json
from stages.core.errors import ConfigError
from stages.core.messages import LOOPBACK

SERVICES = {"s3_port": 8400, "prefect_port": 4300}
SECRETS = {"s3_access_key": "access-key-id", "s3_secret_key": "very-secret", "prefect_auth": "moxin:also-secret"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the caller's shell."""
    for name in list(os.environ):
        if name.startswith(("MOXIN_", "AWS_", "PREFECT_")):
            monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The state of a machine with the embedded services."""
    (tmp_path / "services.json").write_text(json.dumps(SERVICES))
    (tmp_path / "credentials.json").write_text(json.dumps(SECRETS))
    return tmp_path


def test_the_embedded_services(folder: Path) -> None:
    found = Settings.load(folder)
    assert (found.store.endpoint, found.store.bucket, found.store.prefix) == ("http://127.0.0.1:8400", "moxin", "")
    assert (found.external_store, found.external_prefect) == (False, False)
    assert found.prefect_api_url == "http://127.0.0.1:4300/api"
    assert found.prefect_ui_url == "http://127.0.0.1:4300"
    keys = {"AWS_ACCESS_KEY_ID": "access-key-id", "AWS_SECRET_ACCESS_KEY": "very-secret"}
    assert found.store_environment() == keys | {"MOXIN_STORE_FOLDER": str(folder / "store")}


def test_what_a_shell_says_of_another_store_is_not_sent_to_the_embedded_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FOREIGN:
        monkeypatch.setenv(name, "of another store")
    Settings.load(folder)
    assert not set(FOREIGN) & os.environ.keys()
    monkeypatch.setenv("MOXIN_S3_ENDPOINT", "https://store.example.org")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of this store")
    assert Settings.load(folder).credentials["AWS_SESSION_TOKEN"] == "of this store"


def test_a_store_of_the_users_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "MOXIN_S3_ENDPOINT": "https://store.example.org",
        "MOXIN_S3_BUCKET": "b",
        "MOXIN_S3_REGION": "eu-1",
        "MOXIN_S3_PREFIX": "team/",
        "AWS_PROFILE": "lab",
        "AWS_SHARED_CREDENTIALS_FILE": "/keys",
        "AWS_UNRELATED": "x",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    found = Settings.load(folder)
    assert found.external_store
    assert found.store.model_dump() == {
        "bucket": "b",
        "endpoint": "https://store.example.org",
        "region": "eu-1",
        "prefix": "team/",
    }
    assert found.store_environment() == {
        "AWS_PROFILE": "lab",
        "AWS_SHARED_CREDENTIALS_FILE": "/keys",
    }, "not the embedded keys"


def test_a_bucket_alone_means_aws(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_S3_BUCKET", "b")
    assert Settings.load(folder).store.endpoint is None
    monkeypatch.setenv("MOXIN_EMBEDDED", "1")
    assert Settings.load(folder).store.endpoint == "http://127.0.0.1:8400"


def test_moxin_embedded_starts_a_store_although_one_of_the_users_own_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_S3_ENDPOINT", "https://store.example.org")
    assert lifecycle._external({})[0], "the user's own: `moxin up` starts none"
    monkeypatch.setenv("MOXIN_EMBEDDED", "1")
    assert not lifecycle._external({})[0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MOXIN_STORE_PATIENCE", "soon", "^MOXIN_STORE_PATIENCE = 'soon': set it to seconds, such as 120$"),
        ("MOXIN_CACHE_BYTES", "half", "^MOXIN_CACHE_BYTES = 'half': set it to bytes, such as 500000000000$"),
        ("MOXIN_STORE_PATIENCE", "-1", "^MOXIN_STORE_PATIENCE = '-1': set it to seconds, such as 120$"),
        ("MOXIN_EMBEDDED", "perhaps", "^MOXIN_EMBEDDED = 'perhaps': set it to 0 or 1$"),
        ("MOXIN_S3_ENDPOINT", "s3.example.org", "^MOXIN_S3_ENDPOINT = 's3.example.org': set it to a URL: http://"),
        ("PREFECT_API_URL", "localhost:4200", "^PREFECT_API_URL = 'localhost:4200': set it to a URL: http://../api$"),
    ],
)
def test_a_wrong_value_is_one_line_naming_the_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        Settings.load(folder)


def test_patience_with_the_store_reaches_the_stages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MOXIN_STORE_PATIENCE" not in Settings.load(folder).store_environment()
    monkeypatch.setenv("MOXIN_STORE_PATIENCE", "900")
    assert Settings.load(folder).store_environment()["MOXIN_STORE_PATIENCE"] == "900"


def test_a_variable_without_text_is_unset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOXIN_HOME", "MOXIN_S3_ENDPOINT", "MOXIN_S3_BUCKET", "MOXIN_EMBEDDED", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "")
    assert home().name == ".moxin"
    assert not Settings.load(folder).external_store
    assert not Settings.load(folder).external_prefect


def test_no_secret_of_the_environment_is_in_the_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "very-secret")
    assert "very-secret" not in repr(environment())


def test_a_prefect_server_of_the_users_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example.org/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:theirs")
    found = Settings.load(folder)
    assert found.external_prefect
    assert found.prefect_auth == "me:theirs"
    assert "PREFECT_HOME" not in found.environment()


def test_the_environment_of_the_control_plane(folder: Path) -> None:
    env = Settings.load(folder).environment()
    assert env["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
    assert env["PREFECT_API_AUTH_STRING"] == "moxin:also-secret"
    assert env["PREFECT_HOME"] == str(folder / "prefect")
    assert env["MOXIN_HOME"] == str(folder)
    assert env["DO_NOT_TRACK"] == "1"
    assert env["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_no_secret_is_in_the_representation(folder: Path) -> None:
    text = repr(Settings.load(folder))
    assert "8400" in text
    assert not [secret for secret in SECRETS.values() if secret in text]


def test_no_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="no object store: start the embedded services with 'moxin up', or set MOXIN_S3_ENDPOINT"
    ):
        Settings.load(tmp_path)


def test_lost_credentials_say_what_to_do(folder: Path) -> None:
    (folder / "credentials.json").unlink()
    with pytest.raises(ConfigError, match=r"credentials\.json has no keys for the object store: run 'moxin down'"):
        Settings.load(folder)


def test_a_damaged_state_file_is_named(folder: Path) -> None:
    (folder / "services.json").write_text('{"s3_port": 84')
    with pytest.raises(ConfigError, match=r"services\.json is damaged .*: remove it and run 'moxin up' again"):
        Settings.load(folder)
    assert read_json(folder / "nowhere.json") == {}


def test_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home().name == ".moxin"
    monkeypatch.setenv("MOXIN_HOME", str(tmp_path / "a" / ".." / "b"))
    assert home() == (tmp_path / "b").resolve()


def test_loopback_is_never_asked_for_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.request import proxy_bypass_environment

    from flows.settings import directly

    for given, kept in (
        ({}, []),
        ({"NO_PROXY": "a.example, b.example"}, ["a.example", "b.example"]),
        ({"no_proxy": "127.0.0.1"}, []),
    ):
        found = directly(given)
        assert (
            found["NO_PROXY"]
            == found["no_proxy"]
            == ",".join([*kept, *([*LOOPBACK] if not given or kept else ["127.0.0.1", "localhost", "::1"])])
        )
        assert all(
            proxy_bypass_environment(host, {"no": found["no_proxy"]}) for host in (*kept, "localhost", "127.0.0.1")
        )
