"""The automations for dead runs: Prefect's own trigger takes a real heartbeat, and an old automation is mended. That a
run that crashed is started again: tests/integration/flows/test_run_states.py.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from flows.local_services import prefect
from flows.settings import Settings
from stages.core.messages import StoreAddress

pytestmark = pytest.mark.slow  # imports Prefect's server: seconds

SETTINGS = Settings(Path("/nowhere"), StoreAddress(bucket="b"), "http://127.0.0.1:9/api", True, False, {})
RUN = "prefect.flow-run.0199a3c2-0000-7000-8000-000000000000"


def test_prefects_own_trigger_takes_a_heartbeat_and_the_end_of_a_run() -> None:
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import ReceivedEvent

    trigger = EventTrigger.model_validate(prefect.heartbeat_automation()["trigger"])
    assert trigger.starts_after("prefect.flow-run.heartbeat"), "the name that prefect/flow_engine.py sends"
    for name in ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed", "Suspended"):
        event = ReceivedEvent(
            occurred="2026-01-01T00:00:00Z",
            event=f"prefect.flow-run.{name}",
            resource={"prefect.resource.id": RUN, "prefect.resource.name": "run"},
            id="0199a3c2-0000-7000-8000-000000000001",
        )
        assert trigger.covers(event)
        assert trigger.expects(event.event)
        assert trigger.bucketing_key(event) == (RUN,), "each run is watched by itself"


class Server:
    """Automations as Prefect's server keeps them: with more fields, and names in an order of its own."""

    def __init__(self, *automations: dict[str, Any]) -> None:
        self.automations = {str(number): {"id": str(number), **row} for number, row in enumerate(automations)}
        self.changes = 0

    def call(self, settings: Settings, method: str, path: str, body: Any = None, missing_ok: bool = False) -> Any:
        from prefect.server.events.schemas.automations import AutomationUpdate

        if path == "/automations/filter":
            return [
                {"id": row.pop("id"), **json.loads(AutomationUpdate.model_validate(row).model_dump_json())}
                for row in copy.deepcopy(self.rows)
                if row["name"] in body["automations"]["name"]["any_"]
            ]
        if path.startswith("/automations/"):
            assert method in ("POST", "PUT")
            self.changes += 1
            id = path.removeprefix("/automations/") or str(len(self.automations))
            self.automations[id] = {"id": id, **copy.deepcopy(body)}
        return {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self.automations.values())


RESTART = {"id": "1", **prefect.restart_automation()}


def configured(monkeypatch: pytest.MonkeyPatch, server: Server) -> list[dict[str, Any]]:
    monkeypatch.setattr(prefect, "call_api", server.call)
    for _ in range(2):
        prefect.configure(SETTINGS)
    return server.rows


def test_each_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    assert configured(monkeypatch, server) == [{"id": "0", **prefect.heartbeat_automation()}, RESTART]
    assert server.changes == 2


def test_one_that_can_never_fire_is_replaced_and_stays_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """As homes have it that were made while the names had lost their prefix."""
    broken = prefect.heartbeat_automation()
    broken["trigger"] = json.loads(json.dumps(broken["trigger"]).replace("prefect.", ""))
    server = Server({**broken, "enabled": False}, RESTART)
    assert configured(monkeypatch, server) == [{"id": "0", **prefect.heartbeat_automation(), "enabled": False}, RESTART]
    assert server.changes == 1, "the second start finds it as it should be"
