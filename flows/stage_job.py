"""What a launcher is given to start one attempt of a node: the request, and the code that it was made by."""

from __future__ import annotations

import os
import subprocess

from flows.data_files import IN_CHECKOUT
from flows.launch.base import Job
from flows.plan import Resolved
from flows.profiles import Profile
from stages.core.config import StageConfig
from stages.core.files import ROOT
from stages.core.graph import Node
from stages.core.keys import source_digest
from stages.core.messages import CodeRef, Lease, StageRequest, StoreAddress


def make_job(
    run_id: str,
    node: Node,
    resolved: Resolved,
    lease: Lease,
    profile: Profile,
    store: StoreAddress,
    config: StageConfig | None = None,
) -> Job:
    """What a launcher gets to start one attempt of a node. config: instead of the profile's."""
    config = config or profile.configs[node.name]
    known = {port: [r.manifest.facets for r in refs] for port, refs in resolved.inputs.items()}
    predicted = node.facets(config, known)
    expected = {port: {k: v for k, v in facets.items() if v is not None} for port, facets in predicted.items()}
    request = StageRequest(
        run_id=run_id,
        node=node.name,
        stage=node.stage,
        revision=node.revision,
        key=resolved.key,
        lease=lease,
        config=config.model_dump(mode="json"),
        inputs=resolved.inputs,
        outputs=node.outputs(config),
        expected_facets=expected,
        code=code_ref(node),
        store=store,
        replaces=resolved.etag,
    )
    return Job(request, profile.resources[node.name], node.env, node.processes(config), node.interpreter(config))


def code_ref(node: Node) -> CodeRef:
    """What code an attempt of this node runs. The environment that it runs in is its launcher's to say
    (flows/launch/base.py, `with_provenance`).
    """
    return CodeRef(source_digest=source_digest(node.stage), git_commit=git_commit())


def git_commit() -> str | None:
    """The commit of this checkout; None outside one: an installed package may lie within a repository of the user's."""
    if not IN_CHECKOUT:
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
