"""A cluster that answers as the API does, and the official client's models to hold objects against."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import ReadTimeoutError

from flows.launch.kubernetes import KubernetesLauncher
from flows.launch.kubernetes_manifests import Site
from flows.settings import Settings
from stages.core.messages import StoreAddress

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "the-id", "AWS_SECRET_ACCESS_KEY": "the-secret"}


def against(value: Any, kind: str, where: str) -> list[str]:
    """Where a value differs from the API's type: unknown fields, wrong types, missing required fields."""
    if match := re.fullmatch(r"(list|dict)[\[(](?:str, )?(.+)[\])]", kind):
        if not isinstance(value, list if match[1] == "list" else dict):
            return [f"{where}: not a {match[1]}"]
        rows = enumerate(value) if match[1] == "list" else value.items()
        return [line for key, inner in rows for line in against(inner, match[2], f"{where}.{key}")]
    simple = {"str": str, "int": int, "bool": bool, "object": object, "IntOrString": (int, str)}
    if kind in simple:
        wrong = not isinstance(value, simple[kind]) or (kind == "int" and isinstance(value, bool))
        return [f"{where}: {value!r} is not {kind}"] if wrong else []
    model = getattr(client, kind)
    fields = {model.attribute_map[name]: inner for name, inner in model.openapi_types.items()}
    try:
        model(
            **{name: value.get(key) for name, key in model.attribute_map.items()}
        )  # the client checks what is required
    except ValueError as error:
        return [f"{where}: {error}"]
    found = [f"{where}.{key}: no such field" for key in value.keys() - fields.keys()]
    return found + [
        line for key in value.keys() & fields.keys() for line in against(value[key], fields[key], f"{where}.{key}")
    ]


def read(kind: str, **value: Any) -> Any:
    """An object as the API would have answered it."""
    return client.ApiClient().deserialize(SimpleNamespace(data=json.dumps(value)), kind)


def waiting_pod(index: int, why: str = "") -> Any:
    """One of several that does not run, with the scheduler's word where there is one."""
    unmet = [{"type": "PodScheduled", "status": "False", "message": why}] if why else []
    annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
    return read(
        "V1Pod",
        metadata={"name": f"p-{index}", "annotations": annotations},
        status={"phase": "Pending", "conditions": unmet},
    )


def pod(code: int = 1, reason: str = "Error", **status: Any) -> Any:
    ended = {
        "name": "stage",
        "image": "i",
        "imageID": "i",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": {"exitCode": code, "reason": reason}},
    }
    return read("V1Pod", metadata={"name": "p-0"}, status={"phase": "Failed", "containerStatuses": [ended], **status})


class Cluster:
    """Core and batch API of a cluster that does what it is told."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.deleted: list[tuple[str, Any]] = []
        self.status: list[dict[str, Any]] = [{}]
        self.log, self.rotated = b"", 0
        self.stored: dict[str, bytes] = {}
        self.patched: list[tuple[str, dict[str, Any]]] = []
        self.fail: str = ""
        self.unanswered = False
        """Whether the answer to a Job's creation does not come."""
        self.pods = [pod(0, "Completed")]
        self.leftover: list[str] = []
        """Jobs of earlier attempts at the key."""

    def put(self, key: str, data: bytes) -> None:
        """As the store does that pods read their requests from."""
        self.stored[key] = data

    def _make(self, namespace: str, body: dict[str, Any]) -> Any:
        if body["kind"] == self.fail:
            raise ApiException(status=403, reason="Forbidden")
        if body["kind"] == "Job" and any(body["metadata"]["name"] == made["metadata"]["name"] for made in self.made):
            raise ApiException(status=409, reason="AlreadyExists")
        self.made.append(body)
        if body["kind"] == "Job" and self.unanswered:
            raise ReadTimeoutError(None, None, "no answer")  # type: ignore[arg-type]
        return read("V1Job", metadata={"name": body["metadata"]["name"], "uid": "uid-1"})

    create_namespaced_job = create_namespaced_secret = create_namespaced_service = _make

    def patch_namespaced_secret(self, name: str, namespace: str, body: dict[str, Any]) -> None:
        self.patched.append((name, body))

    def read_namespaced_job_status(self, name: str, namespace: str) -> Any:
        if not self.status:
            raise ApiException(status=404, reason="Not Found")
        status = self.status.pop(0) if len(self.status) > 1 else self.status[0]
        return read("V1Job", metadata={"name": name, "uid": "uid-1"}, status=status)

    def list_namespaced_pod(self, namespace: str, label_selector: str) -> Any:
        return SimpleNamespace(items=self.pods)

    def list_namespaced_job(self, namespace: str, label_selector: str) -> Any:
        names = ["j"] if "moxin.run=run-1" in label_selector else []
        names += self.leftover if f"moxin.key={'a' * 63}" in label_selector else []
        return SimpleNamespace(items=[read("V1Job", metadata={"name": name}) for name in names])

    def read_namespaced_pod_log(self, name: str, namespace: str, *, timestamps: bool, **_: Any) -> Any:
        """With the time before each line, one a second; without those that were rotated away."""
        assert timestamps
        rows = [
            b"2026-01-01T00:%02d:%02d.000000000Z %s" % (*divmod(number, 60), row)
            for number, row in enumerate(self.log.splitlines(keepends=True))
        ]
        data = b"".join(rows[self.rotated :])
        return SimpleNamespace(stream=lambda: iter([data[:20], data[20:]]))

    def delete_namespaced_job(self, name: str, namespace: str, **how: Any) -> None:
        self.deleted.append((name, how["propagation_policy"]))

    def delete_collection_namespaced_pod(self, namespace: str, label_selector: str, grace_period_seconds: int) -> None:
        self.deleted.append((label_selector, grace_period_seconds))


def launcher(cluster: Cluster, tmp_path: Path) -> KubernetesLauncher:
    settings = Settings(
        tmp_path, StoreAddress(bucket="b", endpoint="https://s3.example.org"), "", True, False, CREDENTIALS
    )
    return KubernetesLauncher(settings, Site(), (cluster, cluster), cluster)  # type: ignore[arg-type]
