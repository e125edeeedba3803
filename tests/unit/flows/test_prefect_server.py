"""Prefect's server with the guard around it: what asks for the application again, as automations do, gets the one that
runs.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from flows.cli import running
from flows.local_services import prefect
from flows.prefect_server import POLICY, ServerMiddleware, guarding


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


def test_a_call_waits_longer_than_the_server_waits_for_its_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """A POST that is given up while the server still waits is carried out, and sent again."""
    told: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", told)
    running._configure_prefect()
    server = prefect._environment(Path("/home"), 4200, "user:word")
    assert float(told["PREFECT_API_REQUEST_TIMEOUT"]) > float(server["PREFECT_SERVER_DATABASE_TIMEOUT"])
