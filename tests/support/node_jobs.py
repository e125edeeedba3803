"""The job of every node of a profile as a run hands it to a launcher, and the command line that each launcher makes
of it.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any
from unittest import mock

from flows import profile_checks, profiles, stage_job
from flows.execute import Execution
from flows.launch import docker, kubernetes_manifests, process, slurm_scripts
from flows.launch.base import Job
from flows.plan import Resolved
from stages.core.artifacts import ArtifactManifest
from stages.core.graph import Node
from stages.core.messages import InputRef, Lease, StoreAddress
from stages.pipeline import PIPELINE

LAUNCHERS = ("process", "docker", "slurm", "kubernetes")


STORE = StoreAddress(bucket="b", endpoint="https://s3.example.org")


def loaded(name: str, launcher: str, *overrides: str) -> profiles.Profile:
    """The profile as that launcher could have it: two of them know one machine alone."""
    changes = [
        f"launcher={launcher}",
        *(["resources.pretrain.nodes=1"] if launcher in profile_checks.ONE_MACHINE else []),
        *overrides,
    ]
    return profiles.load(name, PIPELINE, changes)


class _Ledger:
    """As much of a ledger as a request needs."""

    class store:
        address = STORE


def _some(source: Any) -> InputRef:
    """An artifact of which nothing is known."""
    manifest = ArtifactManifest(type=source.type.__name__, digest="0" * 64, facets={}, meta={}, files=())
    return InputRef(node=source.node.name, key="b" * 64, port=source.port, manifest=manifest)


def job_of(node: Node, profile: profiles.Profile) -> Job:
    """The job that a run hands to its launcher: made by the code that makes it there."""
    execution = Execution("run", profile, _Ledger(), None, Path("/x"), frozenset())  # type: ignore[arg-type]
    inputs = {port: tuple(_some(source) for source in sources) for port, sources in node.wires.items()}
    resolved = Resolved(key="a" * 64, inputs=inputs, result=None, etag=None, drift=False)
    with mock.patch.object(stage_job, "git_commit", return_value=None):  # else a process of git for each of the jobs
        return execution._job(node, resolved, Lease(key="a" * 64, epoch=1, holder="h"))


def command_of(job: Job, launcher: str) -> list[str]:
    """The words of each node's command."""
    if launcher == "process":
        return process.command(job, Path("/request.json"))
    if launcher == "docker":
        return docker.command(job)
    if launcher == "kubernetes":
        return kubernetes_manifests.command(job)
    return shlex.split(slurm_scripts.python_command(job, slurm_scripts.Site(), Path("/shared/x")))
