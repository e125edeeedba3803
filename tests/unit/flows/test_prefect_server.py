"""Prefect's server with the guard around it: what asks for the application again, as automations do, gets the one that
runs; a locked database is waited for.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from flows import prefect_server
from flows.cli import running
from flows.local_services import lifecycle, prefect
from flows.prefect_server import PAUSES, POLICY, ServerMiddleware, guarding


def test_lost_runs_are_looked_for_again_and_again_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = [["run x is closed"], OSError("no answer"), ["run y is closed"], KeyboardInterrupt]

    def look(folder: Path) -> list[str]:
        assert folder == tmp_path
        now = looks.pop(0)
        if isinstance(now, list):
            return now
        raise now

    monkeypatch.setattr(lifecycle, "close_lost_runs", look)
    with pytest.raises(KeyboardInterrupt):
        prefect_server.close_lost_runs(tmp_path, 0.0)
    assert capsys.readouterr().out.splitlines() == [
        "run x is closed",
        "runs that may be lost could not be looked for: OSError: no answer",
        "run y is closed",
    ]


def test_an_application_that_runs_can_be_asked_for_again() -> None:
    """Each action of an automation does so. A second guard would be refused, and runs without a heartbeat stayed
    'Running' for ever.
    """
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("page"))])
    create_app = guarding(lambda: app)
    with TestClient(create_app()) as client:
        answer = client.get("/")
        assert (answer.text, answer.headers["content-security-policy"]) == ("page", POLICY)
        assert create_app() is app
        assert client.get("/v2/anything").status_code == 404
    assert [one.cls for one in app.user_middleware] == [ServerMiddleware]


@pytest.mark.parametrize(("locked", "status", "carried_out"), [(0, 201, 1), (2, 201, 3), (99, 503, len(PAUSES) + 1)])
def test_a_request_that_met_a_locked_database_is_carried_out_again(
    locked: int, status: int, carried_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its whole body each time; a client hears of it after the last time alone."""
    monkeypatch.setattr(prefect_server, "PAUSES", (0.0,) * len(PAUSES))
    bodies: list[bytes] = []

    async def create(request: Request) -> JSONResponse:
        bodies.append(await request.body())
        if len(bodies) <= locked:
            raise RuntimeError("database is locked")
        return JSONResponse({"id": len(bodies)}, 201)

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"exception_message": "Service Unavailable"}, 503)

    # as in Prefect's: the handler of all exceptions answers, and the exception goes on to who called the application
    api = Starlette(routes=[Route("/flow_runs/", create, methods=["POST"])], exception_handlers={Exception: refuse})
    app = guarding(lambda: Starlette(routes=[Mount("/api", api)]))()
    body = b"x" * 300_000  # comes in several messages
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post("/api/flow_runs/", content=(body[at : at + 1000] for at in range(0, len(body), 1000)))
    assert (answer.status_code, len(bodies), set(bodies)) == (status, carried_out, {body})
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.json() == ({"id": carried_out} if status == 201 else {"exception_message": "Service Unavailable"})


def test_a_call_waits_longer_than_the_server_waits_for_its_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """A POST that is given up while the server still waits is carried out, and sent again."""
    told: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", told)
    running.configure_prefect()
    server = prefect._environment(Path("/home"), 4200, "user:word")
    assert float(told["PREFECT_API_REQUEST_TIMEOUT"]) > float(server["PREFECT_SERVER_DATABASE_TIMEOUT"])
