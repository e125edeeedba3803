"""Deployments, derived from the pipeline: moxin/full, moxin/<node> for each node (same flow, other `select`), and
moxin/rehearse (flows/rehearsal/run.py), moxin/sweep (flows/sweep.py).
"""

from __future__ import annotations

from typing import Any

from flows.local_services.prefect import POOL, call_api
from flows.settings import Settings
from stages.core.files import ROOT
from stages.pipeline import PIPELINE

ENTRYPOINT = "flows/flow.py:moxin"
REHEARSAL = "flows/rehearsal/run.py:rehearse"
SWEEP = "flows/sweep.py:sweep"


def deployments() -> list[dict[str, Any]]:
    """Every deployment as prefect.yaml states it."""
    rows = [("full", "Run the whole pipeline. Finished stages are answered from the ledger.", "full")]
    rows += [(n.name, f"{_summary(n)} Only this node, from the artifacts that are there.", n.name) for n in PIPELINE]
    sweep = "Run with several settings, each an experiment; what they share is made once."
    rehearsal = "Run a profile's DAG small, where it is meant to run, and tell what the real one will meet."
    return [
        *(_deployment(name, description, ENTRYPOINT, select) for name, description, select in rows),
        _deployment("rehearse", rehearsal, REHEARSAL, "full"),
        _deployment(
            "sweep",
            sweep,
            SWEEP,
            "full",
        ),
    ]


def _deployment(name: str, description: str, entrypoint: str, select: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "entrypoint": entrypoint,
        "tags": ["moxin"],
        "parameters": {"select": select},
        "enforce_parameter_schema": True,
        "work_pool": {"name": POOL},
    }


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
    from flows.rehearsal.run import rehearse
    from flows.sweep import sweep

    flows = {ENTRYPOINT: moxin, REHEARSAL: rehearse, SWEEP: sweep}
    schemas = {entry: parameter_schema(flow).model_dump_for_openapi() for entry, flow in flows.items()}
    flow_id = call_api(settings, "POST", "/flows/", {"name": moxin.name})["id"]
    fixed = {
        "flow_id": flow_id,
        "path": str(ROOT),
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        "work_pool_name": POOL,
    }
    rows = deployments()
    for row in rows:
        kept = {key: value for key, value in row.items() if key != "work_pool"}
        kept["parameter_openapi_schema"] = schemas[row["entrypoint"]]
        call_api(settings, "POST", "/deployments/", kept | fixed)
    return len(rows)
