"""Credentials of raw sources: which a client signs with, and which stage gets them, on every launcher; shown
nowhere.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.launch import docker, kubernetes_manifests, process, slurm_scripts
from flows.launch.base import Job, public_environment, secrets_of
from flows.settings import Settings
from stages.core.errors import ConfigError
from stages.core.messages import CodeRef, Lease, StageRequest, StoreAddress
from stages.core.resources import Resources
from stages.lib.formats import source_credentials

STORE_KEYS = {"AWS_ACCESS_KEY_ID": "STOREKEY", "AWS_SECRET_ACCESS_KEY": "store-secret"}
SOURCE = {
    "HF_TOKEN": "hf_the-token",
    "HF_ENDPOINT": "https://hub.example.org",
    "MOXIN_SOURCE_AWS_ACCESS_KEY_ID": "SOURCEKEY",
    "MOXIN_SOURCE_AWS_SECRET_ACCESS_KEY": "source-secret",
    "MOXIN_SOURCE_S3_ENDPOINT": "https://raw.example.org",
}
HIDDEN = ("hf_the-token", "SOURCEKEY", "source-secret", "proxy-password")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if (
            name in source_credentials.VARIABLES
            or name in source_credentials.PROXIES
            or name.startswith(("AWS_", "MOXIN_SOURCE_", "HF_", "SSL_CERT", "REQUESTS_CA"))
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def server() -> Iterator[tuple[str, list[str | None]]]:
    """An S3 endpoint that answers everything, and the Authorization header of each request."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"text")

        def log_message(self, *arguments: Any) -> None:
            pass

    found = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}", seen
    found.shutdown()
    found.server_close()


def signed_with(server: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch, **variables: str) -> str | None:
    """The key that a request for a source was signed with; None for an unsigned one."""
    for name, value in {**STORE_KEYS, "MOXIN_SOURCE_S3_ENDPOINT": server[0], **variables}.items():
        monkeypatch.setenv(name, value)
    assert source_credentials.s3_client().get_object(Bucket="raw", Key="a b/ü.jsonl")["Body"].read() == b"text"
    header = server[1][-1]
    return re.search(r"Credential=([^/]+)/", header)[1] if header else None  # type: ignore[index]


def test_a_source_never_sees_the_stores_key(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert signed_with(server, monkeypatch) is None, "unsigned, as public buckets take it"


def test_a_source_never_sees_the_stores_file_of_keys(
    server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A launcher hands the store's file over under this name alone: no key and no profile stands beside it."""
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = STOREKEY\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("MOXIN_SOURCE_S3_ENDPOINT", server[0])
    source_credentials.s3_client().get_object(Bucket="raw", Key="a")["Body"].read()
    assert server[1][-1] is None


def test_a_sources_own_keys_are_used(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: value for name, value in SOURCE.items() if "AWS" in name}
    assert signed_with(server, monkeypatch, **keys) == "SOURCEKEY"


def test_a_profile_of_a_file_comes_before_the_stores_keys(
    server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        "[crawl]\naws_access_key_id = FILEKEY\naws_secret_access_key = x\n[default]\naws_access_key_id ="
        " DEFAULTKEY\naws_secret_access_key = x\n"
    )
    named = {"MOXIN_SOURCE_AWS_SHARED_CREDENTIALS_FILE": str(file)}
    assert signed_with(server, monkeypatch, **named, MOXIN_SOURCE_AWS_PROFILE="crawl") == "FILEKEY"
    monkeypatch.delenv("MOXIN_SOURCE_AWS_PROFILE")
    assert signed_with(server, monkeypatch, **named) == "DEFAULTKEY"
    monkeypatch.setenv("MOXIN_SOURCE_AWS_PROFILE", "absent")
    with pytest.raises(ConfigError, match="MOXIN_SOURCE_AWS_PROFILE = 'absent' cannot be used"):
        source_credentials.s3_client()


def test_the_former_name_of_the_endpoint_is_taken_with_a_warning(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_RAW_S3_ENDPOINT", server[0])
    with pytest.warns(FutureWarning, match="MOXIN_RAW_S3_ENDPOINT is called MOXIN_SOURCE_S3_ENDPOINT now"):
        assert source_credentials.s3_client().meta.endpoint_url == server[0]
    monkeypatch.setenv("MOXIN_SOURCE_S3_ENDPOINT", "http://127.0.0.1:9")
    assert source_credentials.s3_client().meta.endpoint_url == "http://127.0.0.1:9", "the new name comes first"


def test_half_a_pair_of_keys_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_SOURCE_AWS_ACCESS_KEY_ID", "SOURCEKEY")
    with pytest.raises(ConfigError, match=r"^MOXIN_SOURCE_AWS_SECRET_ACCESS_KEY is not set, but the other half"):
        source_credentials.s3_client()


# --- launchers
# ----------------------------------------------------------------------------------------------------------


def job(endpoint: str = "https://s3.example.org", **resources: Any) -> Job:
    request = StageRequest(
        run_id="r", node="ingest_text", stage="ingest", revision=1, key="a" * 64,
        lease=Lease(key="a" * 64, epoch=1, holder="h"),
        config={}, inputs={}, outputs={}, code=CodeRef(source_digest="0" * 64),
        store=StoreAddress(bucket="b", endpoint=endpoint),
    )  # fmt: skip
    return Job(request, Resources(**resources), "data")


def handed_over(by: str, given: Job, home: Path) -> tuple[dict[str, str], str]:
    """The environment that a stage will have of a launcher, and all that the launcher shows to others."""
    settings = Settings(home, given.request.store, "http://127.0.0.1:1/api", True, False, STORE_KEYS)
    if by == "process":
        return (
            process.ProcessLauncher(settings)._environment(given),
            " ".join(process.command(given, Path("/r"))) + given.request.model_dump_json(),
        )
    secrets = secrets_of(given, settings.store_environment())
    environment = {**secrets.environment, **dict.fromkeys(secrets.files, "file")}
    if by == "docker":
        launcher = docker.DockerLauncher(settings)
        with tarfile.open(fileobj=io.BytesIO(docker._archive(given, STORE_KEYS))) as archive:
            assert json.loads(archive.extractfile("secrets.json").read()) == secrets.model_dump()  # type: ignore[union-attr]
        return environment, json.dumps(
            [launcher._environment(given), docker.command(given), given.labels, given.request.model_dump_json()]
        )
    if by == "slurm":
        return environment, slurm_scripts.script(given, slurm_scripts.Site(), home / "x", "mark", home / "scratch")
    objects = [
        kubernetes_manifests.batch_job(given, kubernetes_manifests.Site(), "mark"),
        kubernetes_manifests.service(given, "mark"),
    ]
    data = kubernetes_manifests.secret(given, secrets, "mark")["stringData"]
    assert json.loads(data["secrets.json"]) == secrets.model_dump()
    return environment, json.dumps([objects, given.request.model_dump_json()])


@pytest.mark.parametrize("by", ["process", "docker", "slurm", "kubernetes"])
def test_a_stage_with_the_internet_gets_them_and_nobody_sees_them(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SOURCE, "HTTPS_PROXY": "http://me:proxy-password@proxy.example.org:3128"}.items():
        monkeypatch.setenv(name, value)
    got, shown = handed_over(by, job(network="internet"), tmp_path)
    assert got.items() >= (SOURCE | STORE_KEYS).items()
    assert got["HTTPS_PROXY"].endswith("@proxy.example.org:3128")
    assert not [secret for secret in HIDDEN if secret in shown]
    closed, shown = handed_over(by, job(), tmp_path)
    assert closed.items() >= STORE_KEYS.items()
    given = {name for name in closed if name in source_credentials.VARIABLES or name in source_credentials.PROXIES}
    assert given <= {"NO_PROXY", "no_proxy"}, "loopback is never asked for through a proxy: that is no secret"
    assert not [secret for secret in HIDDEN if secret in shown + json.dumps(closed)]
    assert not [secret for secret in HIDDEN if secret in json.dumps(public_environment(job(network="internet")))]


def test_a_file_of_profiles_goes_along_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("[default]\n")
    monkeypatch.setenv(source_credentials.FILE, str(tmp_path / "keys"))
    assert secrets_of(job(network="internet"), {}).files == {source_credentials.FILE: "[default]\n"}
    assert secrets_of(job(), {}).files == {}


def test_a_token_that_a_login_left_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is huggingface_hub's own."""
    from huggingface_hub import constants

    assert secrets_of(job(network="internet"), {}).environment == {}
    default = Path(constants.HF_TOKEN_PATH)  # of the home that this process began with
    (tmp_path / "home").joinpath(*default.parts[-3:-1]).mkdir(parents=True)
    (tmp_path / "home").joinpath(*default.parts[-3:]).write_text("hf_left\n")
    assert secrets_of(job(network="internet"), {}).environment == {"HF_TOKEN": "hf_left"}
    assert secrets_of(job(), {}).environment == {}
    monkeypatch.setenv("HF_TOKEN", "hf_said")
    assert secrets_of(job(network="internet"), {}).environment == {"HF_TOKEN": "hf_said"}


def test_elements_of_an_array_get_those_of_sources_and_the_stores_where_nobody_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the files that the launcher writes: an element takes them up, and they go with the job."""
    from flows.launch.array_request import ArrayRequest
    from flows.launch.slurm import SlurmLauncher
    from flows.launch.slurm_scripts import Site, array_script
    from stages.core.task_objects import FolderObjects, first_part
    from stages.lib.data import job_array

    for name, value in SOURCE.items():
        monkeypatch.setenv(name, value)
    given = job(network="internet")
    given = replace(given, request=given.request.model_copy(update={"config": {"workers": "slurm"}}))
    launcher = SlurmLauncher(
        Settings(tmp_path, given.request.store, "http://127.0.0.1:1/api", True, False, STORE_KEYS), Site()
    )
    monkeypatch.setattr("flows.launch.slurm.run", lambda *words: "7")
    monkeypatch.setattr("flows.launch.slurm.cancel_leftovers", lambda *words: None)
    launcher.start(given)
    objects = FolderObjects(tmp_path / "work")
    objects.put(first_part("read-00000000"), b'{"parts": 1, "jobs": []}')
    request = ArrayRequest(place=objects.place, name="read-00000000", tasks=3, cpus=1, memory_gib=1)
    script = array_script(given, Site(), request, tmp_path / "slurm", "mark")
    assert not [secret for secret in HIDDEN if secret in script]
    (line,) = [line for line in script.splitlines() if "job_array" in line]
    words = shlex.split(shlex.split(line.partition("bash -c ")[2])[0])
    command = words[words.index("stages.lib.data.job_array") + 1 : words.index("</dev/null")]
    for name in SOURCE:
        monkeypatch.delenv(name)
    assert job_array.main([word.replace("$SLURM_ARRAY_TASK_ID", "0") for word in command]) == 0
    assert {name: os.environ.get(name) for name in SOURCE} == SOURCE
    assert {name: os.environ.get(name) for name in STORE_KEYS} == STORE_KEYS
    for name in (*SOURCE, *STORE_KEYS):  # the element set them
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("http://127.0.0.1:8333", "127.0.0.1"),
        ("http://172.18.0.1:40001", "172.18.0.1"),
        ("https://s3.example.org", None),
    ],
)
def test_no_proxy_leads_to_a_store_beside_it(endpoint: str, host: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store in the internet may have to be reached through it."""
    from urllib.request import proxy_bypass_environment

    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "intern.example.org")
    got = secrets_of(job(endpoint, network="internet"), {}).environment
    rules = {"no": got["no_proxy"]}
    assert got["NO_PROXY"] == got["no_proxy"]
    assert proxy_bypass_environment("127.0.0.1", rules)
    assert proxy_bypass_environment("intern.example.org", rules)
    assert bool(proxy_bypass_environment("s3.example.org", rules)) is False
    assert host is None or proxy_bypass_environment(host, rules)


def test_an_engine_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.lib.engines.process import environment

    for name, value in {**SOURCE, **STORE_KEYS, "HTTPS_PROXY": "http://x"}.items():
        monkeypatch.setenv(name, value)
    kept = environment(tmp_path)
    assert not kept.keys() & {*SOURCE, *STORE_KEYS, "HTTPS_PROXY"} - {"HF_ENDPOINT"}
