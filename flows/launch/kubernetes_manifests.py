"""The Kubernetes objects of an attempt, as plain values: a Secret, a Job, and for several nodes a headless Service."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flows import environments
from flows.data_files import DATA
from flows.launch.array_request import ArrayRequest
from flows.launch.base import Job, load_site, public_environment, stored_request, torchrun
from stages.core.errors import ConfigError
from stages.core.messages import Secrets
from stages.core.resources import Processes, Resources

UID = 65532
PORT = 29500
"""torchrun's own default."""
TRIES = 3
"""How often a pod of an array that was killed is made again."""
SECRET_BYTES = 1 << 20
"""The most that a Secret holds (Kubernetes documentation, "Secrets", Restrictions)."""


class Site(BaseModel):
    """What a cluster's administrators decide: infra/k8s/site.toml, or the file that MOXIN_K8S_SITE names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str = Field(default="moxin", description="where jobs are made")
    context: str = Field(
        default="", description="context of the kubeconfig; empty: the current one, or the pod's own account"
    )
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, str], ...] = ()
    pull_secrets: tuple[str, ...] = Field(default=(), description="names of secrets for the image registry")
    service_account: str = Field(
        default="",
        description=(
            "the account that pods of stages run under, and by which the store knows them (IRSA, EKS Pod Identity,"
            " workload identity); empty: copies of the control plane's credentials"
        ),
    )
    gpu: str = Field(default="nvidia.com/gpu", description="the resource that stands for a GPU")
    priority_class: str = ""
    array_size: int = Field(
        default=1000, gt=0, le=100_000, description="indexes of an array at most; more tasks share them"
    )
    array_limit: int = Field(default=0, ge=0, description="pods of an array that run at the same time; 0: all")
    keep_seconds: int = Field(
        default=3600, ge=0, description="a finished job is removed by the cluster after this, if we did not"
    )

    @classmethod
    def load(cls) -> Site:
        """Read the site's file. Raises ConfigError naming file and key."""
        return load_site(cls, "MOXIN_K8S_SITE", DATA / "infra" / "k8s" / "site.toml", "cluster")


def name_of(job: Job) -> str:
    """Name of an attempt's objects: a DNS label, of at most 63 characters (fewer, since a pod adds `-<index>`)."""
    node = job.request.node.replace("_", "-")[:30].strip("-")
    return f"moxin-{node}-{job.request.key[:10]}-{job.request.lease.epoch}"


def labels_of(job: Job, installation: str) -> dict[str, str]:
    """Labels of every object of an attempt; a value has at most 63 characters."""
    return {"app.kubernetes.io/name": "moxin", "moxin.home": installation} | {
        name: value[:63] for name, value in job.labels.items()
    }


def secret(job: Job, secrets: Secrets, installation: str, renewed: bool = False) -> dict[str, Any]:
    """Credentials. renewed: the launcher will change them. Raises ConfigError when they are more than a Secret
    holds.
    """
    data = {"secrets.json": secrets.model_dump_json()}
    if sum(len(text.encode()) for text in data.values()) > SECRET_BYTES:
        raise ConfigError(
            f"node {job.request.node}: its credentials, with the files that they name, are over 1 MiB, more than a"
            " Kubernetes Secret holds: name a smaller bundle of certificates (AWS_CA_BUNDLE, SSL_CERT_FILE)"
        )
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "immutable": not renewed,
        "stringData": data,
        "metadata": {"name": name_of(job), "labels": labels_of(job, installation)},
    }


def service(job: Job, installation: str) -> dict[str, Any] | None:
    """The headless service that gives pods of several nodes names; None for one node."""
    if job.resources.nodes == 1:
        return None
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name_of(job), "labels": labels_of(job, installation)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # peers look each other up before they are ready
            "selector": {"batch.kubernetes.io/job-name": name_of(job)},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def command(job: Job) -> list[str]:
    """The container's command line. An Indexed Job tells each pod its number."""
    name = name_of(job)
    launcher = torchrun(
        job, "--node-rank=$(JOB_COMPLETION_INDEX)", f"--master-addr={name}-0.{name}", f"--master-port={PORT}"
    )
    return [
        "python",
        *launcher,
        "-m",
        "stages.core.runtime",
        stored_request(job)[0].model_dump_json(exclude_defaults=True).replace("$(", "$$("),
        "--secrets",
        "/secrets/secrets.json",
    ]


def batch_job(job: Job, site: Site, installation: str) -> dict[str, Any]:
    """The Job: one pod, or one indexed pod for each node. It is never retried by the cluster: the control plane decides
    that.
    """
    resources = job.resources
    indexed = {"completionMode": "Indexed"} if resources.nodes > 1 else {}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": resources.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(job, site)],
        "volumes": [
            {"name": "secrets", "secret": {"secretName": name_of(job), "defaultMode": 0o440}},
            {"name": "scratch", "emptyDir": {"sizeLimit": f"{resources.scratch_gib:g}Gi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{int(resources.memory_gib * 512)}Mi"}},
        ],
    }
    if resources.nodes > 1:
        pod["subdomain"] = name_of(job)
    if site.service_account:  # its token for the store is put in by the cluster; that for the cluster itself stays out
        pod["serviceAccountName"] = site.service_account
    if site.node_selector:
        pod["nodeSelector"] = dict(site.node_selector)
    if site.tolerations:
        pod["tolerations"] = [dict(row) for row in site.tolerations]
    if site.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in site.pull_secrets]
    if site.priority_class:
        pod["priorityClassName"] = site.priority_class
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name_of(job), "labels": labels_of(job, installation)},
        "spec": {
            "backoffLimit": 0,
            "completions": resources.nodes,
            "parallelism": resources.nodes,
            **indexed,
            "ttlSecondsAfterFinished": site.keep_seconds,
            "template": {"metadata": {"labels": labels_of(job, installation)}, "spec": pod},
        },
    }


def uses_arrays(job: Job) -> bool:
    """Whether a stage will ask for arrays (`stages/lib/data/job_array.py`)."""
    return job.request.config.get("workers") == "kubernetes"


def array_name(job: Job, request: ArrayRequest) -> str:
    """Name of an array's Job: short enough for its pods' host names, `<name>-<index>`, of 63 characters."""
    node = job.request.node.replace("_", "-")[:18].strip("-")
    return f"moxin-{node}-{job.request.key[:10]}-{job.request.lease.epoch}-{request.name[-8:]}"


def array_job(job: Job, site: Site, request: ArrayRequest, installation: str, owner: str) -> dict[str, Any]:
    """The Indexed Job of an array that a stage asked for: its image, its secret, its scratch, and for each pod what one
    task needs. owner: uid of the stage's Job.
    """
    needs = {
        "cpus": request.cpus,
        "memory_gib": request.memory_gib,
        "scratch_gib": _share_of_scratch(job.resources, request.cpus),
        "gpus": 0,
        "nodes": 1,
        "nproc_per_node": 1,
    }
    element = replace(job, resources=job.resources.model_copy(update=needs), processes=Processes.SINGLE)
    count = min(request.tasks, site.array_size)
    body = batch_job(element, site, installation)
    stage = {"apiVersion": "batch/v1", "kind": "Job", "name": name_of(job), "uid": owner}
    body["metadata"] |= {"name": array_name(job, request), "ownerReferences": [stage]}
    spec = body["spec"]
    del spec["backoffLimit"]  # of all indexes together: each has its own
    spec |= {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": min(count, site.array_limit or count),
        "backoffLimitPerIndex": TRIES,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailIndex",
                    "onExitCodes": {"containerName": "stage", "operator": "In", "values": [1]},
                },
            ]
        },
    }
    (container,) = spec["template"]["spec"]["containers"]
    container["command"] = [
        *("python", "-m", "stages.lib.data.job_array"),
        *(word.replace("$(", "$$(") for word in (request.place, request.name)),
        *("$(JOB_COMPLETION_INDEX)", str(count), "--secrets", "/secrets/secrets.json"),
    ]
    return body


def _share_of_scratch(resources: Resources, cpus: float) -> float:
    """GiB of local disk for a pod of an array: of the stage's, which is for all tasks of a machine, as its part of the
    cores; a stage's default at least.
    """
    least = min(resources.scratch_gib, Resources().scratch_gib)
    return max(least, round(resources.scratch_gib * min(1.0, cpus / resources.cpus), 3))


def _container(job: Job, site: Site) -> dict[str, Any]:
    resources = job.resources
    arrays = {"MOXIN_ARRAYS": "1"} if uses_arrays(job) else {}
    memory = f"{max(1, round(resources.memory_gib * 1024))}Mi"
    limits: dict[str, str] = {"memory": memory}
    requests = {"memory": memory, "cpu": f"{resources.cpus:g}", "ephemeral-storage": f"{resources.scratch_gib:g}Gi"}
    if resources.gpus:
        limits[site.gpu] = requests[site.gpu] = str(resources.gpus)
    return {
        "name": "stage",
        "image": environments.stage_image(job.request.stage, job.env).reference,
        "command": command(job),
        "env": [
            {"name": name, "value": value.replace("$(", "$$(")}
            for name, value in sorted((public_environment(job) | arrays).items())
        ],  # `$(X)` is X's value
        "resources": {"requests": requests, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "secrets", "mountPath": "/secrets", "readOnly": True},
            {"name": "scratch", "mountPath": "/scratch"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
