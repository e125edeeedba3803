"""Deployments on a real Prefect server: registered again, they replace those of older code."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from flows import deploy
from flows.settings import Settings
from stages.core.errors import ConfigError
from stages.core.files import ROOT
from stages.core.messages import StoreAddress


@pytest.mark.slow
def test_deployments_of_older_code_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow's file had another name once: a server that ran through the change must not start that file."""
    rows = deploy.deployments()[:3]
    first, last = deploy.installation(), rows[-1]["name"]
    monkeypatch.setattr(deploy, "deployments", lambda: rows)
    with prefect_test_harness(server_startup_timeout=600), get_client(sync_client=True) as client:
        settings = Settings(tmp_path, StoreAddress(bucket="b"), PREFECT_API_URL.value(), False, False)
        client.create_work_pool(WorkPoolCreate(name=deploy.POOL, type="process"))
        for entrypoint in ("flows/moxin.py:moxin", deploy.ENTRYPOINT):
            rows[:] = [row | {"entrypoint": entrypoint} for row in rows]
            deploy.register(settings)
            stored = client.read_deployments()
            assert {row.name: row.entrypoint for row in stored} == {row["name"]: entrypoint for row in rows}
        for one in stored:
            assert (one.work_pool_name, one.path) == (deploy.POOL, str(ROOT))
            assert set(one.tags) - {"data"} == {"moxin", f"installation:{deploy.installation()}"}
            assert one.parameters == {"select": one.name}
            assert one.parameter_openapi_schema is not None
            form = one.parameter_openapi_schema["properties"]
            assert {"select", "profile", "set"} <= form.keys()
            assert all(field["description"] for field in form.values())
            assert list(form.get("fields", {}).get("properties", ())) == [one.name] * (one.name != "full")
        node = next(row for row in stored if row.name == last)
        for wrong in ({"limit": "many"}, {"not_a_field": 1}):
            with pytest.raises(PrefectHTTPStatusError, match="Validation failed for field"):
                client.create_flow_run_from_deployment(node.id, parameters={"fields": {last: wrong}})

        # what people have scheduled outlives a new version of the code
        nightly = CronSchedule(cron="0 3 * * *", timezone="Europe/Berlin")
        client.create_deployment_schedules(node.id, [(nightly, False)])
        deploy.register(settings)
        kept = client.read_deployment(node.id).schedules
        assert [(one.schedule, one.active) for one in kept] == [(nightly, False)]

        # another checkout, which shares the server, has deployments of its own
        said: list[str] = []
        monkeypatch.setenv("MOXIN_INSTALLATION", "bob")
        monkeypatch.setattr(deploy, "ROOT", tmp_path)
        rows.pop()
        deploy.register(settings, said.append)
        paths = {row.name: row.path for row in client.read_deployments()}
        plain = {row["name"] for row in [*rows, {"name": last}]}
        assert paths == dict.fromkeys(plain, str(ROOT)) | {f"{row['name']}-bob": str(tmp_path) for row in rows}
        assert said == [
            f"moxin/full belongs to {first} ({ROOT}): this checkout's deployments are moxin/full-bob and so on"
        ]
        # a node that is gone has no deployment any more, and a folder that is gone has no claim
        rows.pop()
        deploy.register(settings, said.append)
        assert {row.name for row in client.read_deployments()} == plain | {"full-bob"}
        monkeypatch.setattr(deploy, "ROOT", ROOT)
        monkeypatch.delenv("MOXIN_INSTALLATION")
        deploy.register(settings, said.append)
        assert {row.name for row in client.read_deployments()} == {"full", "full-bob"}


def test_checkouts_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three folders called moxin share a server: each has a name of its own, and keeps it."""
    monkeypatch.delenv("MOXIN_INSTALLATION", raising=False)
    monkeypatch.setattr(deploy, "user", lambda: "ann")
    known: list[dict[str, object]] = []
    names: dict[Path, str] = {}
    for place in [tmp_path / letter / "moxin" for letter in "abcabc"]:
        place.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(deploy, "ROOT", place)
        name = deploy.installation(known)
        assert names.setdefault(place, name) == name
        known.append({"path": str(place), "tags": ["moxin", f"{deploy.OF}{name}"]})
    first, *others = names.values()
    assert first == "ann-moxin"
    assert len(set(others)) == 2
    assert all(name.startswith("ann-moxin-") for name in others)
    monkeypatch.setenv("MOXIN_INSTALLATION", first)
    with pytest.raises(ConfigError, match="is the installation ann-moxin: set MOXIN_INSTALLATION"):
        deploy.installation(known)
