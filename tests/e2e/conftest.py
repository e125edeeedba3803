"""A whole installation in a folder of its own: the services of `moxin up`, the command line, runs to break."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flows.local_services.prefect import restart_automation
from tests.support.installation import Installation


@pytest.fixture(scope="package")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Running services in a folder of their own; stopped after the last test of this folder: a server of Prefect's that
    nobody asks takes a tenth of a core all the same.
    """
    found = Installation(tmp_path_factory.mktemp("moxin") / "home")
    found.moxin("up")
    switch_off_restarts(found)
    yield found
    found.moxin("down")


def switch_off_restarts(installation: Installation) -> None:
    """These tests kill flows, and see themselves what the next run does (tests/integration/flows/test_run_states.py has
    the automation). It stays off at the next `moxin up`.
    """
    named = {"automations": {"name": {"any_": [restart_automation()["name"]]}}}
    (automation,) = installation.prefect("POST", "/automations/filter", named)
    installation.prefect("PATCH", f"/automations/{automation['id']}", {"enabled": False})
