"""The Prefect server and worker of `moxin up`, and calls of the server's API without Prefect's client."""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from flows import lost_runs
from flows.local_services import ports
from flows.local_services.ports import Claims
from flows.local_services.processes import Launch, State
from flows.settings import Settings
from stages.core.errors import InfraError

PORT = 4200
"""The preferred port; another is chosen where it is taken."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between tries of a call that was answered 503: SQLite is locked now and then, and nothing was done."""
POOL = "moxin"
"""The work pool of the worker."""
ENV_BEGIN, ENV_END = "# >>> moxin up", "# <<< moxin up"


def _environment(folder: Path, port: int, auth: str) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # Seconds that a call waits for SQLite's lock, by default 10: with eight writers at once, calls were given up.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "30",
        # By default only events go. Runs that ended, with their logs, artifacts and states; live ones stay, and what a
        # node writes is bounded (flows.pacing). Results are in the ledger.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "P90D",
    }


def server_command(folder: Path, state: State, keys: dict[str, str]) -> Launch:
    claims: Claims = {}
    port = ports.choose(state, "prefect", PORT, (), claims)
    command = [
        sys.executable,
        "-m",
        "flows.prefect_server",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    return command, _environment(folder, port, keys["prefect_auth"]), claims


def ready(settings: Settings) -> bool:
    """Only our server takes our password and refuses to answer without it; the health page of any server says that all
    is well.
    """
    try:
        call_api(settings, "GET", "/admin/version")
    except (OSError, ValueError, http.client.HTTPException, InfraError):
        return False
    try:
        call_api(replace(settings, prefect_auth=None), "GET", "/admin/version")
    except InfraError as error:
        return "HTTP 401" in str(error)
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return False


def worker_command(settings: Settings) -> Launch:
    command = [
        sys.executable,
        "-m",
        "prefect",
        "worker",
        "start",
        "--pool",
        POOL,
        "--type",
        "process",
        "--name",
        "embedded",
    ]
    env = settings.environment() | {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    return command, env, {}


def heartbeat_automation() -> dict[str, Any]:
    """The automation that ends runs whose process died without a word. Prefect's names of events and labels all begin
    with `prefect.`.
    """
    heartbeat = "prefect.flow-run.heartbeat"
    ended = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended")]
    return {
        "name": "moxin: crash runs that stopped sending heartbeats",
        "description": "A flow run whose process or machine died is marked Crashed, so that it can be retried.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "after": [heartbeat],
            "expect": [heartbeat, *ended],
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": 90,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": "Its process or machine died: no heartbeat for 90 s.",
            }
        ],
    }


def restart_automation() -> dict[str, Any]:
    """The automation that starts a deployment's run again after a crash: what had finished is answered from the ledger,
    a job that lives on is followed, everything else goes on from its checkpoint.

    Whoever cancels a run ends it for good, and a run of a terminal has somebody there. A forced run would make anew
    what it has made already: it, and a run past the bound, gets a number that the deployment's schema refuses.
    """

    count = "flow_run.parameters['restarts'] | default(0)"
    restarts = f"{lost_runs.RESTARTS + 1} if flow_run.parameters['force'] else ({count}) + 1"
    return {
        "name": "moxin: start runs again that crashed",
        "description": (
            f"A run of a deployment whose process or machine died goes on in a new run, {lost_runs.RESTARTS} times at"
            " most; not one that was cancelled, failed, or was forced."
        ),
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "expect": ["prefect.flow-run.Crashed"],
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "match_related": {"prefect.resource.role": ["deployment"]},
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": 0,
        },
        "actions": [
            {
                "type": "run-deployment",
                "source": "inferred",
                "schedule_after": 10,
                "parameters": _json(f"{{{{ dict(flow_run.parameters, restarts={restarts}) | tojson }}}}"),
            }
        ],
    }


def _json(template: str) -> dict[str, Any]:
    """Parameters that Prefect makes of a template's text."""
    return {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": template}}


def configure(settings: Settings) -> None:
    """The work pool, and the automations for dead runs."""
    if call_api(settings, "GET", f"/work_pools/{POOL}", missing_ok=True) is None:
        call_api(settings, "POST", "/work_pools/", {"name": POOL, "type": "process"})
    for automation in (heartbeat_automation(), restart_automation()):
        _automate(settings, automation)


def _automate(settings: Settings, automation: dict[str, Any]) -> None:
    """Make an automation. One that an earlier version made is brought up to date, and stays switched off where somebody
    switched it off.
    """
    named = {"automations": {"name": {"any_": [automation["name"]]}}}
    existing: list[dict[str, Any]] = call_api(settings, "POST", "/automations/filter", named) or []
    if not existing:
        call_api(settings, "POST", "/automations/", automation)
    for old in existing:
        if not _same_trigger(automation["trigger"], old["trigger"]):
            call_api(settings, "PUT", f"/automations/{old['id']}", {**automation, "enabled": old["enabled"]})


def _same_trigger(ours: dict[str, Any], stored: dict[str, Any]) -> bool:
    """Whether the server's trigger says what ours does. The server adds fields, and lists names in any order."""

    def unordered(value: Any) -> Any:
        return sorted(cast("list[Any]", value)) if isinstance(value, list) else value

    return all(unordered(stored.get(name)) == unordered(value) for name, value in ours.items())


def call_api(settings: Settings, method: str, path: str, body: Any = None, missing_ok: bool = False) -> Any:
    """One call of the Prefect API. Plain HTTP: importing Prefect's client takes two seconds."""
    request = urllib.request.Request(settings.prefect_api_url + path, method=method)
    if settings.prefect_auth:
        request.add_header("Authorization", "Basic " + base64.b64encode(settings.prefect_auth.encode()).decode())
    data = None if body is None else json.dumps(body).encode()
    request.add_header("Content-Type", "application/json")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for pause in (*PAUSES, None):
        try:
            with opener.open(request, data, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if missing_ok and error.code == 404:
                return None
            if error.code == 503 and pause is not None:
                time.sleep(pause * random.uniform(0.5, 1.5))  # callers that were refused together come apart
                continue
            detail = error.read().decode("utf-8", "replace")[:300]
            raise InfraError(f"the Prefect server refused {method} {path}: HTTP {error.code} {detail}") from error
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise InfraError(
                f"the Prefect server at {settings.prefect_ui_url} does not answer ({why}): 'moxin down', then 'moxin"
                " up' starts it anew"
            ) from error
    raise AssertionError("unreachable")


def write_env(path: Path, settings: Settings) -> None:
    """Keep our block of `.env` current: Prefect's own commands read it when run from the repository's root.

    Only the services of the default state folder are written there; those of another one (MOXIN_HOME) keep theirs
    inside it.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if ENV_BEGIN in old:
        old = old[: old.index(ENV_BEGIN)] + old[old.index(ENV_END) + len(ENV_END) :].lstrip("\n")
    lines = [
        ENV_BEGIN,
        f"PREFECT_API_URL={settings.prefect_api_url}",
        f"PREFECT_API_AUTH_STRING={settings.prefect_auth or ''}",
        ENV_END,
    ]
    new = old + ("" if not old or old.endswith("\n") else "\n") + "\n".join(lines) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != new:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(new)
