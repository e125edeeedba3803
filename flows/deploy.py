"""Deployments, derived from the pipeline: moxin/full, and moxin/<node> for each node (same flow, other `select`)."""

from __future__ import annotations

from typing import Any

from flows.local_services.prefect import POOL, call_api
from flows.settings import Settings
from stages.core.files import ROOT
from stages.pipeline import PIPELINE

ENTRYPOINT = "flows/flow.py:moxin"


def deployments() -> list[dict[str, Any]]:
    """Every deployment as prefect.yaml states it."""
    rows = [("full", "Run the whole pipeline. Finished stages are answered from the ledger.", "full")]
    rows += [(n.name, f"{_summary(n)} Only this node, from the artifacts that are there.", n.name) for n in PIPELINE]
    return [
        {
            "name": name,
            "description": description,
            "entrypoint": ENTRYPOINT,
            "tags": ["moxin"],
            "parameters": {"select": select},
            "enforce_parameter_schema": True,
            "work_pool": {"name": POOL},
        }
        for name, description, select in rows
    ]


def _summary(node: Any) -> str:
    return (type(node).__doc__ or "").strip().splitlines()[0]


def prefect_yaml() -> str:
    """The text of prefect.yaml, for `prefect deploy --all` on a server of one's own."""
    import yaml

    head = "# Derived from stages/pipeline.py by `moxin check --write`; do not edit.\n"
    body = {
        "name": "moxin",
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}],
        "deployments": deployments(),
    }
    return head + yaml.safe_dump(body, sort_keys=False, width=110)


def register(settings: Settings) -> int:
    """Create or update all deployments on the Prefect server; returns how many. Raises InfraError for a server that
    refuses.
    """
    from prefect.utilities.callables import parameter_schema

    from flows.flow import moxin

    schema = parameter_schema(moxin).model_dump_for_openapi()
    flow_id = call_api(settings, "POST", "/flows/", {"name": moxin.name})["id"]
    fixed = {
        "flow_id": flow_id,
        "path": str(ROOT),
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        "parameter_openapi_schema": schema,
        "work_pool_name": POOL,
    }
    rows = deployments()
    for row in rows:
        kept = {key: value for key, value in row.items() if key != "work_pool"}
        call_api(settings, "POST", "/deployments/", kept | fixed)
    return len(rows)
