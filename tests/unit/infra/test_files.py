"""The deployment files: the compose file's promises, Kubernetes files against the API's schema, scripts that are valid
shell.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.launch.docker import NETWORKS
from flows.launch.kubernetes_manifests import Site
from stages.core.files import ROOT
from tests.support.kubernetes_api import against

INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text(encoding="utf-8"))
DOCUMENTS = [
    (path.name, body)
    for path in sorted((INFRA / "k8s").glob("*.yaml"))
    for body in yaml.safe_load_all(path.read_text())
]


@pytest.mark.parametrize(
    "path",
    sorted([*(INFRA / "dev").glob("*.sh"), ROOT / ".ci" / "run", ROOT / "containers" / "install.sh"]),
    ids=lambda p: p.name,
)
def test_scripts_are_valid_shell_that_stops_at_the_first_error(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert re.search(r"^set -eu", path.read_text(), re.MULTILINE)


def test_compose_holds_no_secret_and_listens_on_loopback_alone() -> None:
    text = (INFRA / "compose.yaml").read_text(encoding="utf-8")
    for name in ("POSTGRES_PASSWORD", "PREFECT_AUTH", "S3_ACCESS_KEY", "S3_SECRET_KEY"):
        uses = re.findall(rf"\$\{{{name}[^}}]*\}}", text)
        assert uses, name
        assert all(use.startswith(f"${{{name}:?") for use in uses), f"{name} must be set, and has no default"
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_compose_is_whole() -> None:
    services = COMPOSE["services"]
    assert services.keys() == {"postgres", "prefect", "store", "worker"}
    for name, service in services.items():
        assert set(service["networks"]) <= COMPOSE["networks"].keys()
        for needed in service.get("depends_on", {}):
            assert "healthcheck" in services[needed], f"{name} waits for the health of {needed}"
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source.startswith("/") or source in COMPOSE["volumes"]
        assert re.search(r":(?!latest)\S", service["image"]), "images are pinned"
    assert COMPOSE["networks"]["stages"]["name"] == NETWORKS["internet"], (
        "where the launcher puts stages of a store that is not on loopback"
    )
    example = dict(
        line.split("=", 1)
        for line in (INFRA / "compose.env.example").read_text().splitlines()
        if "=" in line and line[0] != "#"
    )
    wanted = set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text()))
    assert example.keys() == wanted


KINDS = {
    "Namespace": "V1Namespace", "ResourceQuota": "V1ResourceQuota", "ServiceAccount": "V1ServiceAccount",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding", "Deployment": "V1Deployment", "NetworkPolicy": "V1NetworkPolicy",
}  # fmt: skip


@pytest.mark.parametrize(("name", "body"), DOCUMENTS, ids=[f"{name}-{body['kind']}" for name, body in DOCUMENTS])
def test_kubernetes_files_agree_with_the_apis_schema(name: str, body: dict[str, Any]) -> None:
    assert against(body, KINDS[body["kind"]], name) == []
    assert Site().namespace in (body["metadata"].get("namespace"), body["metadata"]["name"])


def test_the_workers_role_allows_what_the_launcher_calls_and_no_more() -> None:
    (role,) = [body for _, body in DOCUMENTS if body["kind"] == "Role"]
    allowed = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    source = (ROOT / "flows" / "launch" / "kubernetes.py").read_text()
    calls = set(re.findall(r"\.((?:create|read|list|delete|patch)_\w+)", source))
    needed = {
        "create_namespaced_job": ("jobs", "create"), "create_namespaced_secret": ("secrets", "create"),
        "create_namespaced_service": ("services", "create"), "read_namespaced_job_status": ("jobs/status", "get"),
        "list_namespaced_job": ("jobs", "list"), "delete_namespaced_job": ("jobs", "delete"),
        "list_namespaced_pod": ("pods", "list"), "delete_collection_namespaced_pod": ("pods", "deletecollection"),
        "read_namespaced_pod_log": ("pods/log", "get"), "patch_namespaced_secret": ("secrets", "patch"),
    }  # fmt: skip
    assert calls == needed.keys()
    assert set(needed.values()) <= allowed
    assert not {verb for _, verb in allowed} & {"*", "update", "escalate", "bind", "impersonate"}
    assert {resource for resource, verb in allowed if verb == "patch"} == {"secrets"}, "to renew credentials, no more"
