"""faults.md J and bug_reports.md 32: services whose state file is lost are found; who answers on a port is not
believed; ports are claimed.
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.local_services import lifecycle, object_store, ports, prefect, processes, state_file
from flows.settings import Settings
from stages.core.errors import InfraError
from stages.core.messages import StoreAddress
from tests.support.probe_pipeline import wait_for


@contextmanager
def server(answer: Callable[[str, str | None], tuple[int, bytes]]) -> Iterator[int]:
    """A server of somebody else: `answer(path, authorization)`. Gives its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, body = answer(self.path, self.headers.get("Authorization"))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST = do_DELETE = do_GET

        def log_message(self, *args: object) -> None:
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield http_server.server_address[1]
    finally:
        http_server.shutdown()
        http_server.server_close()


def settings_of(folder: Path, port: int) -> Settings:
    store = StoreAddress(bucket="moxin", endpoint=f"http://127.0.0.1:{port}")
    keys = {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "ours-too"}
    return Settings(folder, store, f"http://127.0.0.1:{port}/api", False, False, keys, "moxin:ours")


def test_a_prefect_server_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as silent:  # bound, and nobody listens
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(
            InfraError,
            match=(
                rf"^the Prefect server at http://127.0.0.1:{port} does not answer \(.*refused\): 'moxin down', then"
                r" 'moxin up'"
            ),
        ):
            prefect.call_api(settings_of(tmp_path, port), "GET", "/admin/version")


# --- 32: who answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        (
            "healthy, with another password",
            lambda path, given: (200, b"true") if path.endswith("/health") else (401, b"{}"),
        ),
        ("takes anybody", lambda path, given: (200, b'"3.0"')),
        ("knows no such page", lambda path, given: (404, b"nothing here")),
        ("is broken", lambda path, given: (500, b"")),
        ("speaks no JSON", lambda path, given: (200 if given else 401, b"<html>")),
    ],
)
def test_a_prefect_server_of_somebody_else_is_not_taken_for_ours(tmp_path: Path, what: str, answer: Any) -> None:
    with server(answer) as port:
        assert not prefect.ready(settings_of(tmp_path, port)), what


def test_a_server_that_knows_our_password_and_refuses_others_is_ours(tmp_path: Path) -> None:
    ours = "Basic bW94aW46b3Vycw=="
    with server(lambda path, given: (200, b'"3.0"') if given == ours else (401, b"{}")) as port:
        assert prefect.ready(settings_of(tmp_path, port))


def test_a_store_of_somebody_else_is_not_taken_for_ours(
    store_server: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back afterwards
    assert object_store.ready(store_server)
    other = replace(store_server, credentials={"AWS_ACCESS_KEY_ID": "other", "AWS_SECRET_ACCESS_KEY": "keys"})
    assert not object_store.ready(other), "it refuses our keys"
    monkeypatch.setattr(object_store, "refuses_unknown_keys", lambda settings: False)
    assert not object_store.ready(store_server), "it takes any keys"


def test_a_store_that_takes_any_keys_is_known_by_that(tmp_path: Path, store_server: Settings) -> None:
    assert object_store.refuses_unknown_keys(store_server)
    with server(lambda path, given: (200, b"open to all")) as port:
        assert not object_store.refuses_unknown_keys(settings_of(tmp_path, port))


# --- 32: ports --------------------------------------------------------------------------------------------------------


def test_two_installations_that_choose_at_once_never_take_one_port() -> None:
    """Neither listens yet, as in the seconds that Prefect needs to begin."""
    taken: list[int] = []
    held: list[ports.Claims] = []
    for _ in range(3):
        claims: ports.Claims = {}
        taken.append(ports.choose({}, "prefect", 24_200 + os.getpid() % 1000, (10_000,), claims))
        held.append(claims)
    assert len({port for claims in held for port in claims}) == 6
    for claim in held[0].values():
        claim.close()
    assert ports.choose({}, "prefect", taken[0], (10_000,), {}) == taken[0], "given back"
    for claims in held[1:]:
        for claim in claims.values():
            claim.close()


def test_a_port_that_is_in_use_is_not_chosen() -> None:
    with server(lambda path, given: (200, b"")) as port:
        claims: ports.Claims = {}
        assert ports.choose({"s3_port": port}, "s3", 8333, (), claims) != port
        for claim in claims.values():
            claim.close()


def begin(folder: Path, name: str, state: processes.State) -> ports.Claims:
    """Start a stand-in of a service, with a claimed port."""
    claims: ports.Claims = {}
    ports.choose(state, "s3", 25_000 + os.getpid() % 1000, (), claims)
    command = [
        sys.executable,
        "-c",
        (
            "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
            " time.sleep(600)"
        ),
        processes.MARKS[name],
    ]
    env = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    processes.start(folder, state, name, command, env, claims, lambda line: None)
    return claims


def test_a_claim_lives_as_long_as_the_service(tmp_path: Path) -> None:
    state: processes.State = {}
    begin(tmp_path, "store", state)
    port = state["s3_port"]
    try:
        assert ports.claim(port) is None
    finally:
        assert processes.stop(state, "store", 5)
    again = ports.claim(port)
    assert again is not None
    again.close()


# --- J: the state file ------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, processes.State]]:
    """A folder whose store runs."""
    state: processes.State = {}
    begin(tmp_path, "store", state)
    state_file.save(tmp_path, state)
    wait_for(lambda: processes.find(tmp_path)[0], "the stand-in")
    yield tmp_path, dict(state)
    processes.stop(state, "store", 5)


@pytest.mark.parametrize("how", ["removed", "damaged", "forgotten"])
def test_services_whose_file_is_lost_are_found_again(running: tuple[Path, processes.State], how: str) -> None:
    folder, state = running
    path = folder / "services.json"
    if how == "removed":
        path.unlink()
    else:
        path.write_text('{"store": "12' if how == "damaged" else "{}")
    said: list[str] = []
    found = state_file.load(folder, said.append)
    assert {key: found[key] for key in ("store", "s3_port")} == {key: state[key] for key in ("store", "s3_port")}
    assert any("store runs already" in line for line in said)
    assert (folder / "services.json.damaged").exists() == (how == "damaged")


def test_down_stops_services_whose_file_was_removed(running: tuple[Path, processes.State]) -> None:
    folder, state = running
    (folder / "services.json").unlink()
    assert lifecycle.down(folder) == ["store"]
    assert not processes.alive(state, "store")
    assert lifecycle.down(folder) == []


def test_status_waits_for_nobody_and_finds_what_runs(
    running: tuple[Path, processes.State], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = running
    for name in ("MOXIN_S3_ENDPOINT", "MOXIN_S3_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(object_store, "ready", lambda settings: False)
    state_file.credentials(folder)
    with state_file.locked(folder):  # somebody is at `moxin up`
        assert [(row.name, row.healthy) for row in lifecycle.status(folder)] == [("store", False)]
    (folder / "services.json").unlink()
    assert [row.name for row in lifecycle.status(folder)] == ["store"]


def test_lost_keys_are_those_of_the_store_that_runs(running: tuple[Path, processes.State]) -> None:
    folder, _ = running
    found = state_file.credentials(folder)
    assert (found["s3_access_key"], found["s3_secret_key"]) == ("a", "b")
    assert json.loads((folder / "credentials.json").read_text()) == found


def test_services_of_another_folder_are_not_ours(running: tuple[Path, processes.State], tmp_path: Path) -> None:
    assert processes.find(tmp_path / "elsewhere") == ({}, {})


def test_what_a_service_starts_is_not_the_service(running: tuple[Path, processes.State]) -> None:
    folder, state = running
    pid = state["store"].partition(":")[0]
    wait_for(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text(), "the child of the stand-in")
    assert processes.find(folder)[0]["store"] == state["store"]


# --- a port that is taken in between ----------------------------------------------------------------------------------


def test_a_service_whose_port_was_taken_in_between_starts_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who makes no claims was faster: the service dies at its start, and is started again elsewhere."""
    monkeypatch.setattr(Settings, "load", classmethod(lambda cls, folder: None))
    state: processes.State = {}
    said: list[str] = []
    tries: list[int] = []
    with server(lambda path, given: (200, b"")) as busy:

        def command() -> processes.Launch:
            claims: ports.Claims = {}
            if tries:
                ports.choose(state, "prefect", busy, (), claims)
            else:
                state["prefect_port"] = busy
            tries.append(state["prefect_port"])
            program = (
                f"import socket, time; s = socket.socket(); s.bind(('127.0.0.1', {state['prefect_port']}));"
                " time.sleep(600)"
            )
            return [sys.executable, "-c", program, "server"], {"PREFECT_SERVER_API_AUTH_STRING": "x"}, claims

        lifecycle.start(tmp_path, state, "prefect", command(), said.append)
        wait_for(lambda: not processes.alive(state, "prefect"), "the end of the first try")
        lifecycle.bring_up(
            tmp_path,
            state,
            "prefect",
            command,
            lambda settings: processes.alive(state, "prefect") and len(tries) > 1,
            said.append,
        )
    assert tries[0] == busy
    assert tries[1] != busy
    assert "another program has taken a port of prefect meanwhile" in said
    processes.stop(state, "prefect", 5)


def test_a_service_whose_port_was_taken_for_a_moment_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: a store that was started again met an outgoing connection that the kernel had given its port for gRPC."""
    monkeypatch.setattr(Settings, "load", classmethod(lambda cls, folder: None))
    state: processes.State = {"s3_port": 1}
    monkeypatch.setattr(ports, "free", lambda port: True)
    taken = "print('F1201 06:07:03 volume.go:577 listen tcp 127.0.0.1:9: bind: address already in use')"
    programs = [f"{taken}; print('goroutine 1'); raise SystemExit(1)", "import time; time.sleep(600)"]

    def command() -> processes.Launch:
        return [sys.executable, "-c", programs.pop(0), "mini"], {}, {}

    lifecycle.start(tmp_path, state, "store", command(), lambda line: None)
    wait_for(lambda: not processes.alive(state, "store"), "the end of the first try")
    lifecycle.bring_up(
        tmp_path, state, "store", command, lambda settings: processes.alive(state, "store"), lambda line: None
    )
    assert not programs
    processes.stop(state, "store", 5)


def test_a_port_for_grpc_that_is_taken_is_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "store.log").write_text("--- store started\nno reason\n")
    monkeypatch.setattr(ports, "free", lambda port: port != 18333)
    assert lifecycle._lost_a_port(tmp_path, {"s3_port": 8333}, "store")
    assert not lifecycle._lost_a_port(tmp_path, {"s3_port": 8334}, "store")


def test_a_store_that_does_not_come_up_says_why_and_not_its_stacks(tmp_path: Path) -> None:
    program = (
        "print('F1201 06:07:03 mini.go:9 no such folder'); print('goroutine 1 [running]:\\n' * 9); raise SystemExit"
    )
    state: processes.State = {}
    launch: processes.Launch = ([sys.executable, "-c", program, "mini"], {}, {})
    lifecycle.start(tmp_path, state, "store", launch, lambda line: None)
    with pytest.raises(InfraError, match=r"store did not come up; the end of .*no such folder$"):
        lifecycle.wait(tmp_path, state, "store", lambda: False)


def test_a_service_that_dies_for_another_reason_is_not_started_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "load", classmethod(lambda cls, folder: None))
    state: processes.State = {"prefect_port": 1}
    monkeypatch.setattr(ports, "free", lambda port: True)
    launch: processes.Launch = ([sys.executable, "-c", "raise SystemExit('no such database')", "server"], {}, {})
    lifecycle.start(tmp_path, state, "prefect", launch, lambda line: None)
    with pytest.raises(InfraError, match=r"prefect did not come up; the end of .*no such database"):
        lifecycle.bring_up(
            tmp_path, state, "prefect", lambda: pytest.fail("started again"), lambda settings: False, print
        )
